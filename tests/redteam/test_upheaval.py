"""Attacks that never stop, while parts of what stops them are taken away: never a moment open."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import cloister
from redteam.attacks import (
    Attack,
    AttackSucceeded,
    ControlFailed,
    Harmless,
    in_pod,
    judge,
    of_proof,
)
from redteam.direct import MPTCP, query, tcp, tls, udp
from redteam.proxied import LEGITIMATE, connect, get, harmless
from redteam.sandboxes import ALLOWED_HOSTS, NAMED, OPEN, SEALED, SMALL, Kind, Sandboxes
from redteam.targets import Targets
from support import cluster
from support.cluster import (
    JSON,
    SYSTEM,
    apply,
    condition,
    environment,
    kubectl,
    listing,
    wait_condition,
    wait_for,
)
from support.cluster import (
    session as session_manifest,
)
from support.fake_internet import PROBE, Event, FakeInternet
from support.fake_internet_names import ALLOWED, ATTACKER, BESIDE, EVIL, NAME_SERVER, OTHERS

ROOT = Path(__file__).resolve().parents[2]
GATEWAYS = "app.kubernetes.io/component=egress-gateway"
STORM = 20.0
FLOOD = 15.0
STORMING = (NAMED[0], NAMED[2])
"""Of those that may reach a few names: a user without rights, and root."""


def direct(targets: Targets) -> list[JSON]:
    """A few ways past the gateway."""
    return [
        tcp("169.254.169.254", 80, wait=1), tls(ATTACKER, EVIL), udp(ATTACKER, 443, wait=1),
        query(NAME_SERVER), tcp(targets.bystander, 8000, wait=1), tcp(targets.node, 10250, wait=1),
        {"kind": "stream", "host": ATTACKER, "port": 443, "protocol": MPTCP},
    ]  # fmt: skip


def proxied(targets: Targets) -> list[JSON]:
    """A few ways through it, straight to each gateway that there was, too."""
    made = [connect(f"{EVIL}:443", EVIL), get(f"http://{EVIL}/"), connect(f"{ATTACKER}:443", EVIL),
            connect(f"{ALLOWED}:443", BESIDE), get("http://169.254.169.254/")]  # fmt: skip
    for each in targets.gateways:
        made.append(connect(f"{OTHERS}:443", OTHERS, proxy=f"{each}:3128"))
        made += [tls(each, OTHERS), tls(each, EVIL)]
        made += [tcp(each, port, wait=1) for port in (3129, 3130, 3141, 7444)]
    return made


class Storm:
    """Attacks from sandboxes in the background, with a legitimate request among them."""

    def __init__(
        self, sessions: Sequence[cloister.Session], world: FakeInternet, attempts: Sequence[JSON]
    ) -> None:
        self._world, self._attempts = world, list(attempts)
        self._mark = world.mark()
        self._threads = ThreadPoolExecutor(len(sessions))
        self._results = [
            self._threads.submit(in_pod, each, [LEGITIMATE, *self._attempts], STORM)
            for each in sessions
        ]

    def over(self, name: str, harmless: Harmless = harmless) -> list[JSON]:
        """Wait for its end and judge it; returns how each sandbox's legitimate requests went."""
        self._threads.shutdown()
        legitimate: list[JSON] = []
        results: list[JSON] = []
        for each in self._results:
            if error := each.exception():
                raise ControlFailed(f"{name}: the storm broke off: {error}") from error
            first, *rest = each.result()
            legitimate.append(first)
            results += rest
        tried = [each["times"] for each in results]
        assert min(tried) > 1, f"{name}: hardly anything was tried: {tried}"
        row = Attack(name, lambda _: self._attempts, harmless=harmless)
        judge(row, self._attempts * len(legitimate), results, self._world.since(self._mark))
        return legitimate


@pytest.fixture
def targets(targets: Targets) -> Targets:
    """The same with the gateways that there are now."""
    pods = listing("pods", GATEWAYS, SYSTEM)
    return dataclasses.replace(targets, gateways=tuple(each["status"]["podIP"] for each in pods))


@pytest.fixture
def more(sandboxes: Sandboxes) -> Iterator[Sandboxes]:
    """Sandboxes of one test."""
    with sandboxes.passing() as made:
        yield made


@pytest.fixture
def attacker(sandboxes: Sandboxes) -> cloister.Session:
    return sandboxes.of(NAMED[0])


@pytest.fixture
def attackers(sandboxes: Sandboxes) -> list[cloister.Session]:
    """A strict sandbox and one with root, at the same time."""
    return [sandboxes.of(each) for each in STORMING]


def recovered(*sessions: cloister.Session) -> None:
    """What is allowed works in the end."""
    for each in sessions:
        wait_for("an allowed request", lambda each=each: _works(each))  # type: ignore[misc]


def gateways_ready() -> None:
    kubectl(
        *("rollout", "status", "deployment/cloister-egress-gateway", "-n", SYSTEM),
        "--timeout=120s",
    )


@pytest.mark.attack
@pytest.mark.parametrize("at_once", [False, True], ids=["one-by-one", "all-at-once"])
def test_gateways_that_restart(
    at_once: bool, attackers: list[cloister.Session], world: FakeInternet, targets: Targets
) -> None:
    storm = Storm(attackers, world, direct(targets) + proxied(targets))
    names = [each["metadata"]["name"] for each in listing("pods", GATEWAYS, SYSTEM)]
    for each in [names] if at_once else [[name] for name in names]:
        kubectl("delete", "pod", *each, "-n", SYSTEM, "--grace-period=1")
        gateways_ready()
    storm.over("gateways that restart")
    recovered(*attackers)


@pytest.mark.attack
def test_gateways_whose_processes_die(
    attackers: list[cloister.Session], world: FakeInternet, targets: Targets
) -> None:
    """Squid, its helpers, haproxy and the agent, killed in turn, over and over."""
    storm = Storm(attackers, world, direct(targets) + proxied(targets))
    killed = 0
    for program in ("squid", "cloister_gateway.helper", "haproxy", "cloister_gateway.agent"):
        killed += kill_in_gateways(program)
    storm.over("gateways whose processes die")
    assert killed, "no process of a gateway was found"
    gateways_ready()
    recovered(*attackers)


def kill_in_gateways(word: str) -> int:
    """Kill the gateways' processes whose command line has this word; returns how many."""
    uids = [each["metadata"]["uid"] for each in listing("pods", GATEWAYS, SYSTEM)]
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group = (folder / "cgroup").read_text().replace("_", "-")
            if word.encode() in (folder / "cmdline").read_bytes() and any(
                uid in group for uid in uids
            ):
                os.kill(int(folder.name), 9)
                found += 1
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.fixture
def no_operator() -> Iterator[Callable[[], None]]:
    """The operator goes when this is called, and comes back after the test."""
    name = "deployment/cloister-operator"
    found = cluster.get("deployment", "cloister-operator", SYSTEM)
    assert found is not None

    def stop() -> None:
        kubectl("scale", name, "-n", SYSTEM, "--replicas=0")
        operators = "app.kubernetes.io/component=operator"
        wait_for("no operator", lambda: not listing("pods", operators, SYSTEM) or None)

    yield stop
    kubectl("scale", name, "-n", SYSTEM, f"--replicas={found['spec']['replicas']}")
    kubectl("rollout", "status", name, "-n", SYSTEM, "--timeout=120s")


@pytest.mark.attack
def test_no_operator(
    attackers: list[cloister.Session],
    world: FakeInternet,
    targets: Targets,
    no_operator: Callable[[], None],
) -> None:
    no_operator()
    storm = Storm(attackers, world, direct(targets) + proxied(targets))
    legitimate = storm.over("no operator")
    if not all(each["good"] for each in legitimate):
        raise ControlFailed(f"without an operator what is allowed fails: {legitimate}")
    # The storm is over the bound that a gateway has for each source; all of it works after that.
    recovered(*attackers)


def _works(session: cloister.Session) -> bool | None:
    result = in_pod(session, [LEGITIMATE])[0]
    return result["reached"] or None


@pytest.mark.attack
def test_a_policy_that_changes(more: Sandboxes, world: FakeInternet, targets: Targets) -> None:
    """What an Environment allows newly is for new sandboxes; one that runs gains nothing."""
    names = [more.environment(each) for each in STORMING]
    attackers = [more.session(*each) for each in zip(STORMING, names, strict=True)]
    storm = Storm(attackers, world, direct(targets) + proxied(targets))
    allowed = {"allowedHosts": [*ALLOWED_HOSTS, OTHERS]}
    changed = [_named(*each, allowed) for each in zip(STORMING, names, strict=True)]
    apply(*changed)
    for kind, name in zip(STORMING, names, strict=True):
        wait_for("a new sandbox that may", lambda kind=kind, name=name: _may(more, kind, name))  # type: ignore[misc]
    # What new sandboxes ask for, and are tried with before they are closed, arrives; whether the
    # attacker got there, he himself heard.
    storm.over(
        "a policy that changes",
        lambda event: (
            harmless(event) or of_proof(event) or OTHERS in (event.sni, event.name, event.host)
        ),
    )


def _named(kind: Kind, name: str, networking: JSON) -> JSON:
    """The manifest of an Environment of this kind with another network."""
    made = environment(name, **{**SMALL, **kind.spec, "networking": networking})
    made["metadata"]["namespace"] = kind.namespace
    return made


def _may(more: Sandboxes, kind: Kind, name: str) -> bool | None:
    with more.passing() as short:
        fresh = short.session(kind, name)
        return in_pod(fresh, [connect(f"{OTHERS}:443", OTHERS)])[0]["reached"] or None


@pytest.mark.attack
@pytest.mark.parametrize("kind", [SEALED[0], SEALED[1], *NAMED], ids=lambda each: each.name)
def test_a_pods_first_moments(
    kind: Kind, more: Sandboxes, world: FakeInternet, targets: Targets
) -> None:
    """What is run before anything is granted or proven attacks from the pod's first moment on."""
    attempts = direct(targets) + [each for each in proxied(targets) if kind not in SEALED]
    setup = (
        f"cat > /tmp/probe.py <<'END'\n{PROBE.read_text()}\nEND\n"
        f"cat > /tmp/told.json <<'END'\n{json.dumps(attempts)}\nEND\n"
        "python3 /tmp/probe.py 6 < /tmp/told.json > /workspace/first.json\n"
    )
    mark = world.mark()
    name = more.environment(kind, setup=setup)
    session = more.session(kind, name)
    results = json.loads(session.bash("cat /workspace/first.json").text)
    row = Attack("first moments", lambda _: attempts, harmless=_no_words)
    judge(row, attempts, results, world.since(mark))


def _no_words(event: Event) -> bool:
    """Until the policy engine covers a pod, the operator's own attempts may connect: they say
    nothing. Whether the script's did, it says itself.
    """
    return harmless(event) or event.kind == "packet" or (event.kind == "raw" and not event.first)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("what", "threads"),
    [("kept", 300), ("denied", 30), ("tunnels", 30), ("half-said", 300), ("by-name", 30)],
)
def test_a_flood(
    what: str, threads: int, attacker: cloister.Session, more: Sandboxes, targets: Targets
) -> None:
    """One sandbox does its worst to every gateway; another one goes on as before."""
    other = more.session(NAMED[0], more.environment(NAMED[0]))
    each = [f"{address}:3128" for address in targets.gateways]
    attempts = {
        "kept": [{"kind": "held", "proxy": one} for one in each],
        "denied": [connect(f"{EVIL}:443", EVIL, proxy=one) for one in each],
        "half-said": [
            {"kind": "held", "host": one, "port": 443, "send": "\x16\x03"}
            for one in targets.gateways
        ],
        "by-name": [tls(one, EVIL) for one in targets.gateways],
        "tunnels": [connect(f"{ALLOWED}:443", send="", proxy=one) for one in each],
    }[what]
    ready = in_pod(other, [LEGITIMATE], 3)[0]
    if ready["good"] != ready["times"]:
        raise ControlFailed(f"it does not work without a flood either: {ready}")
    thread = threading.Thread(target=in_pod, args=(attacker, attempts, FLOOD, threads))
    thread.start()
    during = in_pod(other, [LEGITIMATE], FLOOD)[0]
    thread.join()
    if during["good"] < during["times"] or during["times"] < 10:
        raise AttackSucceeded(f"the flood of {what} kept another sandbox from working: {during}")
    recovered(attacker)


def devcluster(*args: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "devcluster" / "src")}
    subprocess.run(
        [sys.executable, "-m", "cloister_devcluster", *args], cwd=ROOT, env=env, check=True
    )


@pytest.fixture
def no_policy_engine() -> Iterator[None]:
    """The cluster without its policy engine: pods made from now on are open."""
    devcluster("stop", "router")
    yield
    devcluster("start", "router")


@pytest.mark.attack
def test_no_policy_engine(no_policy_engine: None, more: Sandboxes) -> None:
    """Nobody gets a sandbox whose network is not closed, whatever its network should be."""
    kinds = (SEALED[0], NAMED[0], OPEN[0])
    names = [more.environment(each, ready=False) for each in kinds]
    for kind, name in zip(kinds, names, strict=True):
        wait_condition("environment", name, "NetworkEnforced", "False", 120)
        apply(session_manifest(name, name))
        waiting = wait_condition("session", name, "Ready", "False")
        kubectl("delete", "session", name, "-n", kind.namespace)
        if (waiting.get("status") or {}).get("podName"):
            raise AttackSucceeded(f"a session without enforcement: {waiting['status']}")
        assert condition(waiting, "Ready")["reason"] == "NetworkNotEnforced"
