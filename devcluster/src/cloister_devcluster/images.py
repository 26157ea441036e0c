"""Builds our images when what goes into them changed, and brings them into the cluster."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import inputs, oci
from .components import Config
from .errors import ClusterError
from .places import ROOT, cache
from .progress import Progress, say

REGISTRY = "localhost/cloister"
TAG = "dev"
_EPOCH = 1_700_000_000
"""Modification time of every file in a build context: only content decides what is rebuilt."""


@dataclass(frozen=True)
class Image:
    """One image: what it is made of."""

    name: str
    dockerfile: str
    target: str
    group: str
    """Its lock is requirements/<group>.txt."""
    sources: tuple[str, ...]
    """Import packages, as paths in the tree."""
    packages: tuple[str, ...] = ()
    """Lists of Debian packages, as paths in the tree; empty is Python alone."""
    extra: tuple[str, ...] = ()
    """Further files of the build context, as paths in the tree."""

    @property
    def tag(self) -> str:
        return f"{REGISTRY}/{self.name}:{TAG}"

    def debian(self) -> list[str]:
        """The Debian packages of its base."""
        if not self.packages:
            return ["ca-certificates", "python3", "python3-venv"]
        lists = [inputs.package_list(ROOT / each) for each in self.packages]
        return sorted({name for each in lists for name in each})


_API = "proto/cloister_api"
_BASE, _FULL = "sandbox-image/packages.base.txt", "sandbox-image/packages.full.txt"
_SANDBOX = ("sandbox-image/src/cloister_sandbox", _API)
_OPERATOR = ("operator/src/cloister_operator", _API)
_EXTRA = (_BASE, _FULL, "sandbox-image/install-packages")
_GATEWAY = ("egress-gateway/src/cloister_gateway", _API)
IMAGES = (
    Image("operator", "operator/Dockerfile", "operator", "operator", _OPERATOR),
    Image("client", "operator/Dockerfile", "client", "client", ("client/src/cloister", _API)),
    Image("sandbox", "sandbox-image/Dockerfile", "base", "sandbox", _SANDBOX, (_BASE,), _EXTRA),
    Image(
        *("egress-gateway", "egress-gateway/Dockerfile", "gateway", "gateway", _GATEWAY),
        packages=("egress-gateway/packages.txt",),
        extra=("egress-gateway/packages.txt", "egress-gateway/errors/ERR_CLOISTER"),
    ),
)
FULL = Image(
    "sandbox-full", "sandbox-image/Dockerfile", "full", "sandbox", _SANDBOX, (_BASE, _FULL), _EXTRA
)
"""Built on request only."""


def bundled(config: Config | None, full: bool = False) -> None:
    """Build with buildah what changed; with a running cluster, import what it lacks."""
    chosen = (*IMAGES, FULL) if full else IMAGES
    with _lock(), tempfile.TemporaryDirectory(dir=_folder()) as scratch:
        todo = []
        for image in chosen:
            context = Path(scratch) / image.name
            key = stage(image, context)
            if not _built(image, key):
                todo.append((image, context, key))
        progress = Progress([20 if _has_base(image) else 90 for image, _, _ in todo])
        for index, (image, context, key) in enumerate(todo):
            with progress.step(index, f"building image {image.tag}"):
                _build(image, context, key)
        for image in chosen:
            if config is not None:
                _import(image, config)
    if config is None:
        say("the cluster is not running: the images wait for the next `images`")


def unpack(name: str) -> Path:
    """The Debian of an image as a folder; raises ClusterError for a name that no image has."""
    for image in IMAGES:
        if image.name == name:
            with _lock():
                return inputs.unpack(image.debian())
    raise ClusterError(f"there is no image {name}")


@contextmanager
def mounted(name: str) -> Iterator[tuple[Path, str]]:
    """The root of an image that was built, for as long as the context lasts, and its digest.

    Raises ClusterError for a name that no image has, and for one that is not built.
    """
    image = next((each for each in (*IMAGES, FULL) if each.name == name), None)
    if image is None:
        raise ClusterError(f"there is no image {name}")
    with _lock():
        found = oci.manifest(_layout(), _reference(image))
        if found is None:
            raise ClusterError(f"{image.tag} is not built: run `make images`")
        container = _run("from", "--pull-never", image.tag).strip()
        try:
            yield Path(_run("mount", container).strip()), found["digest"]
        finally:
            _run("rm", container)


def with_engine(engine: str, full: bool = False) -> None:
    """Build with docker or podman, on its public base image; raises ClusterError."""
    with tempfile.TemporaryDirectory() as scratch:
        for image in (*IMAGES, FULL) if full else IMAGES:
            context = Path(scratch) / image.name
            stage(image, context)
            say(f"building {image.tag} with {engine}")
            command = [engine, "build", f"--target={image.target}", f"--tag={image.tag}"]
            command += [f"--build-arg=GROUP={image.group}", str(context)]
            if subprocess.run(command, check=False).returncode:
                raise ClusterError(f"{engine} could not build {image.tag}, see above")


def stage(image: Image, context: Path) -> str:
    """Assemble an image's build context; returns the hash of all that decides its content."""
    (context / "src").mkdir(parents=True)
    shutil.copy(ROOT / image.dockerfile, context / "Dockerfile")
    lock = ROOT / "requirements" / f"{image.group}.txt"
    shutil.copy(lock, context / "requirements.txt")
    shutil.copy(lock, context / f"requirements-{image.group}.txt")
    shutil.copytree(inputs.wheels(lock), context / "wheels")
    for each in image.extra:
        shutil.copy(ROOT / each, context / Path(each).name)
    ignore = shutil.ignore_patterns("__pycache__", "*.pyi", "*.proto")
    for each in image.sources:
        shutil.copytree(ROOT / each, context / "src" / Path(each).name, ignore=ignore)
    digest = hashlib.sha256(inputs.base_key(image.debian()).encode())
    for path in sorted(context.rglob("*")):
        executable = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if executable else 0o644)
        if path.is_file():
            digest.update(f"{path.relative_to(context)}\0{executable}\0".encode())
            digest.update(path.read_bytes())
        os.utime(path, (_EPOCH, _EPOCH))
    return digest.hexdigest()[:12]


def _folder() -> Path:
    folder = cache() / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _layout() -> Path:
    """An OCI image layout with the latest build of every image; they share their layers."""
    return _folder() / "layout"


@contextmanager
def _lock() -> Iterator[None]:
    with (_folder() / "images.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build of the images is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reference(image: Image) -> str:
    return f"{image.name}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:6]}"


def _built(image: Image, key: str) -> bool:
    """Whether the layout's build of this image, from this checkout, has this key."""
    stamp = _folder() / f"{_reference(image)}.key"
    return (
        stamp.exists()
        and stamp.read_text() == key
        and oci.manifest(_layout(), _reference(image)) is not None
    )


def _base(image: Image) -> str:
    return f"{REGISTRY}/base:{inputs.base_key(image.debian())}"


def _has_base(image: Image) -> bool:
    command = _buildah("inspect", "--type=image", _base(image))
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _build(image: Image, context: Path, key: str) -> None:
    began = time.monotonic()
    if not _has_base(image):
        _make_base(image)
    _run(
        *("bud", "--layers", "--isolation=chroot", "--format=oci", f"--timestamp={_EPOCH}"),
        *(f"--build-arg=BASE_IMAGE={_base(image)}", f"--build-arg=GROUP={image.group}"),
        *(f"--target={image.target}", f"--tag={image.tag}", str(context)),
    )
    # The layers are compressed again on every push, the base's too: this way takes half the time.
    quick = ("--compression-format=zstd", "--compression-level=1")
    _run("push", *quick, "--format=oci", image.tag, f"oci:{_layout()}:{_reference(image)}")
    oci.prune(_layout())
    (_folder() / f"{_reference(image)}.key").write_text(key)
    packed = oci.size(_layout(), _reference(image)) / 1e6
    unpacked = _run("images", "--format={{.Size}}", image.tag).strip()
    spent = time.monotonic() - began
    say(f"{image.tag}: {unpacked} unpacked, {packed:.0f} MB compressed; built in {spent:.1f} s")


def _make_base(image: Image) -> None:
    packages = image.debian()
    say(f"making a Debian base with {len(packages)} packages")
    archive = inputs.base_archive(packages, inputs.base_key(packages))
    container = _run("from", "scratch").strip()
    try:
        _run("add", "--quiet", container, str(archive), "/")
        _run("config", "--cmd=/bin/bash", "--env=PATH=" + _PATH, container)
        _run("commit", "--quiet", "--format=oci", f"--timestamp={_EPOCH}", container, _base(image))
    finally:
        _run("rm", container)
    archive.unlink()


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _import(image: Image, config: Config) -> None:
    began = time.monotonic()
    if oci.send(config, _layout(), _reference(image), image.tag):
        say(f"{image.tag} imported in {time.monotonic() - began:.1f} s")
    else:
        say(f"{image.tag} is up to date")


def _buildah(*arguments: str) -> Sequence[str]:
    store = _folder() / "store"
    return ["buildah", f"--root={store}", f"--runroot={store}-run", *arguments]


def _run(*arguments: str) -> str:
    # buildah keeps a lock beside its networks; by default that is in /etc.
    settings = _folder() / "containers.conf"
    settings.write_text(f'[network]\nnetwork_config_dir = "{_folder()}/networks"\n')
    done = subprocess.run(
        _buildah(*arguments),
        env={**os.environ, "CONTAINERS_CONF": str(settings)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise ClusterError(f"`buildah {arguments[0]}` failed:\n{said}")
    return done.stdout
