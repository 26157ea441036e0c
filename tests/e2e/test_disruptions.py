"""Parts of the cluster killed or replaced under load: nothing is lost, and how long it takes to go
on.
"""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import cloister
from cloister_devcluster.components import Config
from cloister_devcluster.places import here
from support.cluster import JSON, SANDBOXES, SYSTEM, get, kubectl, listing, wait_for, wait_phase

pytestmark = [pytest.mark.disruptive, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
POOL = 2
LINES = 300
COMMAND = f"for i in $(seq {LINES}); do echo line $i; sleep 0.1; done; exit 7"
"""Takes longer than any outage here."""
PATIENCE = 180.0
MOST = 6
"""Sessions of the load: more than begin before the kill, and no more than the node has room for."""


def devcluster(*args: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "devcluster" / "src")}
    command = [sys.executable, "-m", "cloister_devcluster", *args]
    subprocess.run(command, cwd=ROOT, env=env, check=True)


def _operators() -> list[int]:
    """The operators' processes of this cluster, as this machine numbers them."""
    group = Config(here(), "").cgroup + "/"
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = group in (folder / "cgroup").read_text()
            argv = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if mine and b"cloister_operator" in argv:
            found.append(int(folder.name))
    return found


def kill(component: str) -> None:
    """SIGKILL; what no container runtime starts again is started again by us.

    `upgrade` is gentle: the Deployment replaces its operators one after the other.
    """
    if component == "upgrade":
        kubectl("rollout", "restart", "deployment/cloister-operator", "-n", SYSTEM)
        kubectl(
            *("rollout", "status", "deployment/cloister-operator", "-n", SYSTEM), "--timeout=3m"
        )
        return
    if component == "operator":
        pids = _operators()
        assert pids, "no operator runs"
        for pid in pids:
            os.kill(pid, 9)
        return
    devcluster("kill", component)
    devcluster("start", component)


class Load:
    """Sessions created one after the other, each with a request id of its own."""

    def __init__(self, client: cloister.Client, environment: str) -> None:
        self._client = client
        self._environment = environment
        self._stop = threading.Event()
        self.names: dict[str, str] = {}
        """Of sessions, by request id."""
        self.answered: list[float] = []
        """When, by the monotonic clock, a call was answered that began so."""
        self.refused: Counter[str] = Counter()
        self.broken: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() and len(self.names) < MOST:
            began, request_id = time.monotonic(), uuid.uuid4().hex
            try:
                self.names[request_id] = self.create(request_id)
                self.answered.append(began)
            except Exception as error:
                self.broken.append(repr(error))
                return
            self._stop.wait(1.0)

    def create(self, request_id: str) -> str:
        """Create a session, and ask for it once more: each as often as it takes."""
        made = self._again(
            lambda: self._client.create_session(
                self._environment, request_id=request_id, wait=PATIENCE
            )
        )
        again = self._again(
            lambda: self._client.create_session(self._environment, request_id=request_id)
        )
        assert again.uid == made.uid, f"{request_id} made {made.name} and {again.name}"
        return made.name

    def _again(self, call: Callable[[], cloister.Session]) -> cloister.Session:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                return call()
            except (cloister.CallError, cloister.KubernetesError) as error:
                self.refused[type(error).__name__] += 1
                if time.monotonic() > end:
                    raise

    def stop(self) -> None:
        """End it after the call under way."""
        self._stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a call hangs"


@pytest.fixture(scope="module")
def environment(environments: Callable[..., str]) -> str:
    return environments(pool={"size": POOL})


@pytest.fixture
def working(client: cloister.Client, environment: str) -> Iterator[cloister.Session]:
    with client.create_session(environment) as made:
        yield made


def run(session: cloister.Session, request_id: str) -> cloister.ToolResult:
    """The command's result, asked for with the same id as often as it takes."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return session.bash(COMMAND, timeout_ms=int(PATIENCE) * 1000, request_id=request_id)
        except (cloister.CallError, cloister.KubernetesError):
            if time.monotonic() > end:
                raise


def whole(environment: str, names: list[str]) -> JSON | None:
    """The Environment, once its status is what there is: a full pool, a pod for each session."""
    try:
        return _whole(environment, names)
    except AssertionError:
        # kubectl has nobody to ask yet.
        return None


def _whole(environment: str, names: list[str]) -> JSON | None:
    found = get("environment", environment) or {}
    counts = (found.get("status") or {}).get("pool") or {}
    pods = listing("pods", f"cloister.dev/environment={environment}")
    states = Counter(each["metadata"]["labels"]["cloister.dev/state"] for each in pods)
    owners = Counter(
        each["metadata"]["labels"].get("cloister.dev/session", "")
        for each in pods
        if each["metadata"]["labels"]["cloister.dev/state"] == "claimed"
    )
    sessions = [
        each for each in listing("sessions") if each["spec"]["environmentName"] == environment
    ]
    good = (
        states == {"warm": POOL, "claimed": len(names)}
        and (counts.get("ready"), counts.get("claimed")) == (POOL, len(names))
        and sorted(each["metadata"]["name"] for each in sessions) == sorted(names)
        and owners == Counter(each["metadata"]["uid"] for each in sessions)
        and all(each["status"]["phase"] == "Running" for each in sessions)
    )
    return found if good else None


def _containers(pod: JSON) -> list[str]:
    """A container that starts again gets another ID."""
    return [each["containerID"] for each in pod["status"]["containerStatuses"]]


@pytest.mark.parametrize(
    "component",
    [
        "operator",
        "upgrade",
        *(
            pytest.param(each, marks=pytest.mark.outage)
            for each in ("kubelet", "containerd", "apiserver", "etcd")
        ),
    ],
)
def test_nothing_is_lost(
    component: str,
    client: cloister.Client,
    environment: str,
    working: cloister.Session,
    record_property: Callable[[str, object], None],
) -> None:
    before = wait_phase(working.name, "Running")
    pod = get("pod", working.pod_name)
    assert pod
    containers = _containers(pod)
    load = Load(client, environment)
    with ThreadPoolExecutor(1) as pool:
        command: Future[cloister.ToolResult] = pool.submit(run, working, uuid.uuid4().hex)
        wait_for("a session of the load", lambda: load.answered or load.broken or None)
        killed = time.monotonic()
        kill(component)
        wait_for(
            "a session asked for after the kill",
            lambda: load.broken or any(each > killed for each in load.answered) or None,
            PATIENCE,
        )
        recovered = time.monotonic() - killed
        result = command.result(PATIENCE)
        load.stop()
    assert not load.broken, load.broken
    assert result.text.splitlines()[:LINES] == [f"line {1 + i}" for i in range(LINES)]
    assert result.exit_code == 7
    names = [working.name, *load.names.values()]
    assert len(set(names)) == 1 + len(load.names), "two requests got one session"
    wait_for("counts that are true", lambda: whole(environment, names), PATIENCE)
    settled = time.monotonic() - killed
    after = get("session", working.name)
    assert after
    same = ("phase", "podName", "podUID", "startedAt")
    assert [after["status"][key] for key in same] == [before["status"][key] for key in same]
    pod = get("pod", working.pod_name)
    assert pod
    assert _containers(pod) == containers
    for name in load.names.values():
        kubectl("delete", "session", name, "-n", SANDBOXES, "--wait=false")
    wait_for("no pod but those in use", lambda: whole(environment, [working.name]), PATIENCE)
    refused = sum(load.refused.values())
    said = f"{component}: a session after {recovered:.1f} s, all counts true after {settled:.1f} s"
    record_property("recovery", said)
    print(f"\n{said}; {len(load.names)} sessions, {refused} calls repeated")
