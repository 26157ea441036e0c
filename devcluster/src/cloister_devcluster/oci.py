"""Images without a container engine: the pause image, and importing archives into the node."""

import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any

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
_REFERENCE = "org.opencontainers.image.ref.name"
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
        _REFERENCE: name.rsplit(":", 1)[1],
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
    _ctr(config, "images", "import", str(archive))


def manifest(layout: Path, reference: str) -> dict[str, Any] | None:
    """The descriptor of an image in an OCI image layout, or None."""
    for entry in _index(layout):
        if entry.get("annotations", {}).get(_REFERENCE) == reference:
            return entry
    return None


def size(layout: Path, reference: str) -> int:
    """Bytes of an image's layers, as they are in the layout."""
    entry = manifest(layout, reference)
    if entry is None:
        raise ClusterError(f"{layout} has no image {reference}")
    return sum(int(each["size"]) for each in _content(layout, entry)["layers"])


def prune(layout: Path) -> None:
    """Remove the blobs that no image of the layout needs any more."""
    needed = {digest for entry in _index(layout) for digest in _blobs(layout, entry)}
    for path in (layout / "blobs" / "sha256").iterdir():
        if f"sha256:{path.name}" not in needed:
            path.unlink()


def send(config: Config, layout: Path, reference: str, name: str) -> bool:
    """Import an image of the layout into the node; returns False when the node has this very one.

    Only the blobs that the node lacks are sent.
    """
    entry = manifest(layout, reference)
    if entry is None:
        raise ClusterError(f"{layout} has no image {reference}")
    for line in _ctr(config, "images", "list").splitlines():
        if line.split()[:1] == [name] and entry["digest"] in line.split():
            return False
    present = set(_ctr(config, "content", "list", "--quiet").split())
    named = {**entry, "annotations": {"io.containerd.image.name": name}}
    index = {"schemaVersion": 2, "manifests": [named]}
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            for digest in _blobs(layout, entry):
                if digest not in present or digest == entry["digest"]:
                    path = _path(layout, digest)
                    archive.add(path, f"blobs/sha256/{path.name}", recursive=False)
            _add(archive, "index.json", json.dumps(index).encode())
        file.seek(0)
        _ctr(config, "images", "import", "-", source=file)
    return True


def _ctr(config: Config, *arguments: str, source: IO[bytes] | None = None) -> str:
    command = [str(config.bin / "ctr"), f"--address={config.places.socket}", "--namespace=k8s.io"]
    done = subprocess.run(
        [*command, *arguments], stdin=source, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"`ctr {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def _index(layout: Path) -> list[dict[str, Any]]:
    path = layout / "index.json"
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = json.loads(path.read_text())["manifests"]
    return entries


def _path(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest.partition(":")[2]


def _content(layout: Path, entry: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_path(layout, entry["digest"]).read_text())
    return content


def _blobs(layout: Path, entry: dict[str, Any]) -> list[str]:
    """The digests of an image's manifest, configuration and layers."""
    content = _content(layout, entry)
    layers = [each["digest"] for each in content["layers"]]
    return [entry["digest"], content["config"]["digest"], *dict.fromkeys(layers)]


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o444) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _tar(files: dict[str, bytes], mode: int = 0o444) -> bytes:
    """A tar whose bytes depend on nothing but its content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            _add(archive, name, data, mode)
    return out.getvalue()
