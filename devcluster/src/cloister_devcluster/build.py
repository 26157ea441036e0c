"""Builds the cluster's binaries from Go modules, once per version."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ClusterError
from .places import cache
from .progress import Progress, say

VERSIONS = Path(__file__).with_name("versions.json")
RECIPE = 1
"""Raise it when the way of building changes, so that old binaries are not used."""
_SHIM_BEFORE = "oomScoreMaxKillable); err != nil {"
_SHIM_AFTER = "oomScoreMaxKillable); err != nil && !os.IsPermission(err) {"


@dataclass(frozen=True)
class Component:
    """One binary: where its source is and how it is built."""

    name: str
    kind: str
    version: str
    seconds: float
    module: str = ""
    package: str = ""
    tags: str = ""
    ldflags: str = ""
    cgo: bool = False
    optional: bool = False
    replace: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Names this very build: the same key, the same binary."""
        text = json.dumps([RECIPE, self.__dict__], sort_keys=True)
        return f"{self.name}-{self.version}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def path(self) -> Path:
        """The built binary."""
        return cache() / "devcluster" / self.key / self.name


def load() -> list[Component]:
    """The locked components."""
    raw = json.loads(VERSIONS.read_text())
    return [Component(**each) for each in raw["components"]]


def find(name: str) -> Component:
    """A component by name; raises ClusterError."""
    for each in load():
        if each.name == name:
            return each
    known = ", ".join(each.name for each in load())
    raise ClusterError(f"there is no component {name}; there are {known}")


def ensure(names: Sequence[str] = (), extra: Sequence[str] = ()) -> None:
    """Build what is missing: the named components, or all that are not optional and `extra`.

    Raises ClusterError for a name that is not in the lock, and when a build fails.
    """
    if names:
        chosen = [find(name) for name in names]
    else:
        chosen = [each for each in load() if not each.optional] + [find(name) for name in extra]
    missing = [each for each in chosen if not each.path.exists()]
    if not missing:
        return
    if shutil.which("go") is None:
        raise ClusterError("Go is needed to build the cluster's binaries, and is not on the PATH")
    with _lock():
        missing = [each for each in missing if not each.path.exists()]
        progress = Progress([each.seconds for each in missing])
        for index, each in enumerate(missing):
            with progress.step(index, f"building {each.name} {each.version}"):
                _build(each)


@contextmanager
def _lock() -> Iterator[None]:
    folder = cache() / "devcluster"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(component: Component) -> None:
    """Build into a scratch folder and move the binary into place: a broken build leaves nothing."""
    scratch = cache() / "devcluster" / f"{component.key}.building"
    shutil.rmtree(scratch, ignore_errors=True)
    source = scratch / "source"
    source.mkdir(parents=True)
    output = scratch / component.name
    log = cache() / "devcluster" / f"{component.name}.log"
    with log.open("w") as out:
        runner = _Runner(source, out.fileno(), cgo=component.cgo)
        if component.kind == "kubernetes":
            _kubernetes_module(component, runner)
            package = f"k8s.io/kubernetes/cmd/{component.name}"
        elif component.kind == "install":
            runner.run("go", "mod", "init", "t")
            _require(component, runner)
            package = component.package
        else:
            runner.run("go", "mod", "init", "t")
            _require(component, runner)
            if component.kind == "gvisor-shim":
                _tolerant_shim(component, runner)
            package = component.package
        command = ["go", "build", "-mod=mod", "-buildvcs=false", "-trimpath", "-p", "2"]
        if component.tags:
            command += ["-tags", component.tags]
        runner.run(*command, "-ldflags", _ldflags(component), "-o", str(output), package)
    final = component.path.parent
    shutil.rmtree(final, ignore_errors=True)
    shutil.rmtree(source, ignore_errors=True)
    scratch.rename(final)


def _require(component: Component, runner: "_Runner") -> None:
    runner.run("go", "mod", "edit", f"-require={component.module}@{component.version}")
    for module, replacement in component.replace.items():
        runner.run("go", "mod", "edit", f"-replace={module}={replacement}")


def _kubernetes_module(component: Component, runner: "_Runner") -> None:
    """Kubernetes' own module replaces its staging modules; a consumer must name their versions."""
    runner.run("go", "mod", "init", "t")
    runner.run("go", "mod", "edit", f"-require=k8s.io/kubernetes@{component.version}")
    mod = runner.download(f"k8s.io/kubernetes@{component.version}")["GoMod"]
    staged = "v0." + component.version.removeprefix("v1.")
    for line in Path(mod).read_text().splitlines():
        parts = line.split()
        if len(parts) == 3 and parts[1] == "=>" and parts[2].startswith("./staging/"):
            runner.run("go", "mod", "edit", f"-replace={parts[0]}={parts[0]}@{staged}")


def _tolerant_shim(component: Component, runner: "_Runner") -> None:
    """Build gVisor's shim from a copy that goes on where the machine forbids raising its OOM score.

    Setting -999 needs CAP_SYS_RESOURCE, which containers and some virtual machines lack.
    """
    source = runner.download(f"{component.module}@{component.version}")["Dir"]
    copy = runner.folder / "gvisor"
    shutil.copytree(source, copy)
    for path in [copy, *copy.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o200)
    service = copy / "pkg" / "shim" / "v1" / "service.go"
    text = service.read_text()
    if _SHIM_BEFORE not in text:
        raise ClusterError("gVisor's shim has changed: its tolerance for OOM scores must be redone")
    service.write_text(text.replace(_SHIM_BEFORE, _SHIM_AFTER))
    runner.run("go", "mod", "edit", f"-replace={component.module}=./gvisor")


def _ldflags(component: Component) -> str:
    flags = f"-s -w {component.ldflags}".strip()
    if component.kind != "kubernetes":
        return flags
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        minor = component.version.split(".")[1]
        stamps = {
            "gitVersion": component.version,
            "gitMajor": "1",
            "gitMinor": minor,
            "gitTreeState": "clean",
            "gitCommit": "0000000",
            "buildDate": "2026-01-01T00:00:00Z",
        }
        flags += "".join(f" -X {package}.{key}={value}" for key, value in stamps.items())
    return flags


class _Runner:
    """Runs go in a folder, with its output in a log."""

    def __init__(self, folder: Path, log: int, cgo: bool) -> None:
        self.folder = folder
        self._log = log
        self._env = {
            **os.environ,
            "CGO_ENABLED": "1" if cgo else "0",
            "GOFLAGS": "-mod=mod",
            "GOWORK": "off",
        }

    def run(self, *command: str) -> None:
        """Run a command; raises ClusterError that names the log."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._env,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            log = os.readlink(f"/proc/self/fd/{self._log}")  # noqa: PTH115 - a descriptor's name
            tail = "\n".join(Path(log).read_text().splitlines()[-5:])
            raise ClusterError(f"`{' '.join(command[:3])}` failed, see {log}:\n{tail}")

    def download(self, module: str) -> dict[str, str]:
        """Where `go mod download` put a module."""
        done = subprocess.run(
            ["go", "mod", "download", "-json", module],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"{module} cannot be downloaded: {done.stderr or done.stdout}")
        found: dict[str, str] = json.loads(done.stdout)
        return found
