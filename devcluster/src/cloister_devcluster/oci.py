"""Images without a container engine: the pause image, and importing archives into the node."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

from .components import PAUSE_IMAGE, Config
from .errors import ClusterError
from .places import cache

PAUSE_SOURCE = """\
/* Holds a pod's namespaces: waits for the end, and reaps what is left to it. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, NULL, WNOHANG) > 0) {} }

int main(void) {
    struct sigaction on_end = {.sa_handler = end}, on_child = {.sa_handler = reap};
    sigaction(SIGINT, &on_end, NULL);
    sigaction(SIGTERM, &on_end, NULL);
    sigaction(SIGCHLD, &on_child, NULL);
    for (;;) pause();
}
"""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def pause_archive() -> Path:
    """The pause image as an OCI archive; built when it is not in the cache."""
    digest = hashlib.sha256((PAUSE_SOURCE + PAUSE_IMAGE).encode()).hexdigest()[:8]
    archive = cache() / "devcluster" / f"pause-{digest}.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    binary = archive.with_suffix(".building")
    done = subprocess.run(
        ["gcc", "-static", "-Os", "-s", "-x", "c", "-o", str(binary), "-"],
        input=PAUSE_SOURCE,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"the pause program cannot be built: {done.stderr.strip()}")
    fresh = archive.with_suffix(".new")
    fresh.write_bytes(pack(PAUSE_IMAGE, binary.read_bytes(), ARCHITECTURES[platform.machine()]))
    binary.unlink()
    fresh.rename(archive)
    return archive


def pack(name: str, program: bytes, architecture: str) -> bytes:
    """An OCI archive whose image is one program, run as nobody."""
    layer = _tar({"pause": program}, mode=0o555)
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    config_bytes = json.dumps(config).encode()
    image = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{image}.manifest.v1+json",
        "config": _descriptor(f"{image}.config.v1+json", config_bytes),
        "layers": [_descriptor(f"{image}.layer.v1.tar", layer)],
    }
    manifest_bytes = json.dumps(manifest).encode()
    entry = _descriptor(f"{image}.manifest.v1+json", manifest_bytes)
    entry["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1],
    }
    index = {"schemaVersion": 2, "mediaType": f"{image}.index.v1+json", "manifests": [entry]}
    blobs = [layer, config_bytes, manifest_bytes]
    return _tar(
        {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": json.dumps(index).encode(),
            **{f"blobs/sha256/{_digest(blob).partition(':')[2]}": blob for blob in blobs},
        }
    )


def load(config: Config, archive: Path) -> None:
    """Import an OCI or docker archive into the node's containerd; raises ClusterError."""
    done = subprocess.run(
        [
            *(str(config.bin / "ctr"), f"--address={config.places.socket}", "--namespace=k8s.io"),
            *("images", "import", str(archive)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"{archive} cannot be imported: {done.stderr.strip()}")


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _tar(files: dict[str, bytes], mode: int = 0o444) -> bytes:
    """A tar whose bytes depend on nothing but its content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
