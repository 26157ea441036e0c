"""The operator killed at work, and the policy engine gone: what is promised still holds."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    SYSTEM,
    apply,
    condition,
    environment,
    get,
    kubectl,
    listing,
    session,
    wait_condition,
    wait_for,
    wait_gone,
)

pytestmark = pytest.mark.disruptive
ROOT = Path(__file__).resolve().parents[2]


def operator_pod() -> dict[str, object] | None:
    """The operator's pod that is ready and not on its way out."""
    for pod in listing("pods", "app.kubernetes.io/component=operator", SYSTEM):
        ready = [each for each in pod["status"].get("conditions", []) if each["type"] == "Ready"]
        going = pod["metadata"].get("deletionTimestamp")
        if ready and ready[0]["status"] == "True" and not going:
            return pod
    return None


def kill_operator() -> str:
    """Kill the operator's pod without grace; returns its name."""
    pod = wait_for("the operator", operator_pod)
    name = str(pod["metadata"]["name"])  # type: ignore[index]
    kubectl("delete", "pod", name, "-n", SYSTEM, "--grace-period=0", "--force")
    return name


def devcluster(*args: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "devcluster" / "src")}
    subprocess.run(
        [sys.executable, "-m", "cloister_devcluster", *args], cwd=ROOT, env=env, check=True
    )


def sessions_per_pod(names: list[str]) -> dict[str, list[str]]:
    pods: dict[str, list[str]] = {}
    for name in names:
        found = get("session", name)
        if found and found.get("status", {}).get("phase") == "Running":
            pods.setdefault(found["status"]["podName"], []).append(name)
    return pods


def test_the_operator_killed_mid_creation_converges(name: str) -> None:
    apply(environment(name, pool={"size": 3}, setup="sleep 1"))
    names = [f"{name}-{index}" for index in range(4)]

    def some_pods() -> bool | None:
        return True if listing("pods", f"cloister.dev/environment={name}") else None

    wait_for("the first pods", some_pods)
    kill_operator()
    apply(*(session(each, name) for each in names))
    wait_for("the operator again", operator_pod)
    kill_operator()

    def all_running() -> dict[str, list[str]] | None:
        pods = sessions_per_pod(names)
        return pods if sum(len(each) for each in pods.values()) == len(names) else None

    pods = wait_for("all sessions Running", all_running, 120)
    assert all(len(each) == 1 for each in pods.values()), pods
    wait_condition("environment", name, "Ready")

    def settled() -> list[dict[str, object]] | None:
        found = listing("pods", f"cloister.dev/environment={name}")
        states = [pod["metadata"]["labels"]["cloister.dev/state"] for pod in found]
        return found if sorted(states) == ["claimed"] * 4 + ["warm"] * 3 else None

    wait_for("four claimed and three warm pods, no more", settled, 60)
    for each in names:
        kubectl("delete", "session", each, "-n", SANDBOXES)
    kubectl("delete", "environment", name, "-n", SANDBOXES)
    wait_gone("environment", name)


def test_sessions_outlive_the_operator(
    client: cloister.Client, environments: Callable[..., str]
) -> None:
    env = environments()
    with client.create_session(env) as running:
        running.bash("export KEPT=1")
        gone = kill_operator()
        assert running.bash("echo $KEPT").text == "1"
        pod = wait_for("a new operator", operator_pod)
        assert pod["metadata"]["name"] != gone  # type: ignore[index]
        found = get("session", running.name)
        assert found is not None
        assert found["status"]["phase"] == "Running"


@pytest.fixture
def no_policy_engine() -> Iterator[None]:
    """The cluster without its policy engine, for pods made from now on."""
    devcluster("stop", "router")
    yield
    devcluster("start", "router")
    kill_operator()
    wait_for("the operator", operator_pod)


def test_without_enforcement_no_session_is_given(no_policy_engine: None, name: str) -> None:
    kill_operator()
    wait_for("the operator", operator_pod)
    apply(environment(name))
    try:
        found = wait_condition("environment", name, "NetworkEnforced", "False")
        sentence = condition(found, "NetworkEnforced")["message"]
        assert "reached" in sentence, sentence
        assert condition(found, "Ready")["status"] == "False"
        apply(session(name, name))
        waiting = wait_condition("session", name, "Ready", "False")
        assert condition(waiting, "Ready")["reason"] == "NetworkNotEnforced"
        assert not listing("pods", f"cloister.dev/environment={name},cloister.dev/state=warm")
        assert waiting["status"]["phase"] == "Pending"
        assert "podName" not in waiting["status"]
    finally:
        kubectl("delete", "session,environment", name, "-n", SANDBOXES)
        wait_gone("environment", name)
