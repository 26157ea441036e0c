"""Starting, stopping and looking at a cluster."""

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from . import build, components, debian, node, oci, pki, storage
from .api import Api
from .components import NODE, PROGRAMS, Config
from .errors import ClusterError
from .places import Places, state_root
from .progress import say

START_SECONDS = 60


@contextlib.contextmanager
def locked(places: Places) -> Iterator[None]:
    """Be the only one who changes this cluster; raises ClusterError when somebody else is."""
    places.lock.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    while True:
        with places.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ClusterError(
                    f"cluster {places.id} is being started or stopped by another command"
                ) from None
            # `down` removes the file: a lock on a removed one keeps nobody out.
            if places.lock.exists() and places.lock.samefile(f"/proc/self/fd/{file.fileno()}"):
                yield
                return


def config_of(places: Places) -> Config | None:
    """The running or half-running cluster's settings, or None."""
    try:
        return Config(places, str(json.loads(places.record.read_text())["network"]))
    except FileNotFoundError:
        return None


def is_there(places: Places) -> bool:
    """Whether the cluster was started wholly, even if it lacks a component now."""
    # The kubeconfig is written last.
    return node.holder(places) is not None and places.kubeconfig.exists()


def running(places: Places) -> Config:
    """The running cluster's settings; raises ClusterError when it is down."""
    config = config_of(places)
    if config is None or not is_there(places):
        raise ClusterError("the cluster is not running: `make cluster-up` starts it")
    return config


def up(places: Places) -> None:
    """Start the cluster unless it runs, and wait until it can be used."""
    _require_root()
    debian.ensure()
    build.ensure()
    with locked(places):
        if is_ready(places):
            say(f"cluster {places.id} is already up: {places.kubeconfig}")
            return
        pid = node.holder(places)
        if pid is not None and is_there(places):
            _mend(running(places), pid)
            return
        if places.base.exists() or pid is not None:
            say("a start was interrupted, or the machine restarted: clearing up first")
            _clear(places)
        _start(places)


def _mend(config: Config, pid: int) -> None:
    """Start the components that do not run."""
    for name, binary in PROGRAMS.items():
        if node.daemon(pid, config.bin / binary) is None:
            say(f"{name} does not run: starting it")
            start_component(config, pid, name)
    _wait(config, lambda: is_ready(config.places), "kubelet")
    say(f"cluster {config.places.id} is up: {config.places.kubeconfig}")


def _start(places: Places) -> None:
    began = time.monotonic()

    def stage(text: str) -> None:
        say(f"{time.monotonic() - began:5.1f} s  {text}")

    config = _prepare(places)
    stage(f"node {NODE} with address {config.node_ip}")
    pid = node.start(config)
    api = Api(config)
    for name in ("etcd", "containerd", "apiserver"):
        start_component(config, pid, name)
    node.wait_until(places.socket.exists, START_SECONDS, "containerd's socket")
    oci.load(config, oci.pause_archive())
    stage("waiting for the API server")
    _wait(config, api.works, "apiserver")
    for name in ("kcm", "scheduler", "kubelet", "proxy"):
        start_component(config, pid, name)
    stage("waiting for the node to register")
    _wait(config, lambda: api.exists(f"/api/v1/nodes/{NODE}"), "kubelet")
    # kube-router exits when its node is not there yet.
    start_component(config, pid, "router")
    api.create("/apis/node.k8s.io/v1/runtimeclasses", components.runtime_class())
    for path, body in storage.objects().items():
        api.create(path, body)
    start_component(config, pid, "storage")
    stage("waiting for the node to be Ready")
    _wait(config, lambda: api.node_ready(NODE), "kubelet")
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    _wait(config, lambda: api.exists(account), "kcm")
    write_private(places.kubeconfig, pki.kubeconfig(config))
    stage("ready")
    say(f"kubeconfig: {places.kubeconfig}")


def _prepare(places: Places) -> Config:
    """Write everything that the programs read."""
    taken = node.routes() + [f"{each}.0/24" for each in _recorded_networks()]
    seed = int(hashlib.sha256(places.id.encode()).hexdigest()[:8], 16)
    config = Config(places, node.choose_network(seed, taken))
    for folder in (places.base, places.containerd):
        folder.mkdir(mode=0o711, parents=True)
        folder.chmod(0o711)
    for folder in (places.pki, places.run, places.logs):
        folder.mkdir(mode=0o700)
    # These folders are on the way to the volumes of user-namespaced pods.
    for name in ("bin", "etc/cni", "kubelet", config.volumes.name):
        (places.base / name).mkdir(mode=0o755, parents=True)
    places.record.write_text(
        json.dumps({"network": config.network, "settings": _original_settings()}) + "\n"
    )
    for each in build.load():
        if each.path.exists():
            (config.bin / each.name).symlink_to(each.path)
    pki.make(config)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = min(hard, 1_000_000) if hard != resource.RLIM_INFINITY else 1_000_000
    for file, text in components.files(config, limit).items():
        file.write_text(text)
    node.make_cgroups(config.cgroup)
    node.raise_limits()
    return config


def start_component(config: Config, pid: int, name: str) -> None:
    """Start one program, whose output goes to its log."""
    node.spawn(
        pid, components.commands(config)[name], config.bin, config.places.logs / f"{name}.log"
    )


def down(places: Places) -> None:
    """Stop the cluster and remove everything of it."""
    _require_root()
    if not state_root().exists() and node.holder(places) is None:
        say(f"cluster {places.id} is not running")
        return
    with locked(places):
        existed = places.base.exists() or node.holder(places) is not None
        _clear(places)
        places.lock.unlink()
    with contextlib.suppress(OSError):
        state_root().rmdir()
    say(f"cluster {places.id} is {'down' if existed else 'not running'}")


def _clear(places: Places) -> None:
    node.remove(places)
    config = Config(places, "")
    node.unlink(config.link)
    node.remove_cgroups(config.cgroup)
    others = [each for each in _records() if each != places.record]
    if not others and places.record.exists():
        node.apply_settings(json.loads(places.record.read_text()).get("settings", {}))
    shutil.rmtree(places.base, ignore_errors=True)
    if places.base.exists():
        raise ClusterError(f"{places.base} cannot be removed: something still uses it")


def is_ready(places: Places) -> bool:
    """Whether every component runs, and the node is Ready."""
    config, pid = config_of(places), node.holder(places)
    if config is None or pid is None or not places.kubeconfig.exists():
        return False
    alive = [node.daemon(pid, config.bin / binary) for binary in PROGRAMS.values()]
    return None not in alive and Api(config).node_ready(NODE)


def status(places: Places) -> bool:
    """Print what runs; returns whether the cluster can be used."""
    config, pid = config_of(places), node.holder(places)
    if config is None or pid is None:
        say(f"cluster {places.id} is not running")
        return False
    running_now = {each.argv[0]: each for each in node.processes(pid) if each.argv}
    total = sum(each.memory for each in running_now.values())
    for name, binary in PROGRAMS.items():
        found = running_now.get(f"{config.bin}/{binary}")
        text = f"pid {found.pid}, {found.memory >> 20} MB" if found else "not running"
        say(f"{name:<11} {text}")
    ready = is_ready(places)
    say(f"node {NODE} is {'Ready' if ready else 'not Ready'}; {total >> 20} MB without the pods")
    say(f"API server: {config.server}")
    say(f"kubeconfig: {places.kubeconfig}")
    say(f"logs:       {places.logs}")
    return ready


def control(places: Places, action: str, name: str) -> None:
    """Start, stop, restart or kill one component, to see what its loss does; raises ClusterError.

    To kill gives it no chance to finish anything; it stays away until it is started.
    """
    _require_root()
    config = running(places)
    pid = node.holder(places)
    if pid is None:
        raise ClusterError("the cluster is not running")
    program = config.bin / PROGRAMS[name]
    with locked(places):
        found = node.daemon(pid, program)
        if action in ("stop", "restart") and found is not None:
            node.stop(found)
            found = None
        if action == "kill" and found is not None:
            node.kill(found)
        if action in ("start", "restart") and found is None:
            start_component(config, pid, name)
    say(f"{name}: {action} done")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, all of it or nothing."""
    fresh = path.with_suffix(".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    fresh.rename(path)


def _wait(config: Config, condition: Callable[[], bool], name: str) -> None:
    log = config.places.logs / f"{name}.log"
    try:
        node.wait_until(condition, START_SECONDS, name)
    except ClusterError as error:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise ClusterError(f"{error}, see {log}:\n{tail}") from None


def _records() -> list[Path]:
    return sorted(state_root().glob("*/node.json"))


def _recorded_networks() -> list[str]:
    return [str(json.loads(each.read_text())["network"]) for each in _records()]


def _original_settings() -> dict[str, str]:
    """The machine's settings as they were before the first of the clusters that run now."""
    for each in _records():
        kept: dict[str, str] = json.loads(each.read_text()).get("settings", {})
        return kept
    return node.settings()


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("the bundled cluster makes namespaces and mounts: run this as root")
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        raise ClusterError("this machine allows no new network namespaces")
