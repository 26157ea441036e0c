"""Sessions deleted in every phase, Environments deleted under their sessions: what stays."""

import json
from collections.abc import Callable
from typing import Any

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
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
    wait_phase,
    wait_reason,
)

Make = Callable[..., str]
KEPT = {"persistent": True, "size": "64Mi"}
KINDS = "pods,secrets,configmaps,persistentvolumeclaims"


def of_session(uid: str) -> list[str]:
    """Objects that belong to a Session: by label, or by owner."""
    found = json.loads(kubectl("get", KINDS, "-n", SANDBOXES, "-o", "json").out)["items"]
    return [
        f"{each['kind']}/{each['metadata']['name']}"
        for each in found
        if (each["metadata"].get("labels") or {}).get("cloister.dev/session") == uid
        or uid in [owner["uid"] for owner in each["metadata"].get("ownerReferences") or []]
    ]


def delete_and_look(name: str) -> None:
    """Delete a Session; nothing of it is left."""
    found = get("session", name)
    assert found is not None
    uid = found["metadata"]["uid"]
    kubectl("delete", "session", name, "-n", SANDBOXES)

    def nothing() -> bool | None:
        return None if of_session(uid) else True

    try:
        wait_for(f"nothing of session {name}", nothing)
    except AssertionError as error:
        raise AssertionError(f"{error}: {of_session(uid)}") from None


@pytest.fixture(scope="module")
def kept(environments: Make) -> str:
    return environments(workspace=KEPT, pool={"size": 0})


@pytest.fixture(scope="module")
def slow(environments: Make) -> str:
    """Its pods take long to start."""
    return environments(setup="sleep 20", pool={"size": 0})


def test_while_it_waits(name: str) -> None:
    apply(session(name, "no-such-environment"))
    wait_reason("session", name, "Ready", ("EnvironmentNotFound",))
    delete_and_look(name)


def test_at_once(kept: str, name: str) -> None:
    apply(session(name, kept))
    delete_and_look(name)


def test_while_its_pod_starts(slow: str, name: str) -> None:
    apply(session(name, slow))
    wait_reason("session", name, "Ready", ("Starting",))
    wait_for("its pod", lambda: of_session(get("session", name)["metadata"]["uid"]) or None)  # type: ignore[index]
    delete_and_look(name)


def test_while_it_runs_is_suspended_and_resumes(kept: str, name: str) -> None:
    for phase in ("Running", "Suspended", "Pending"):
        each = f"{name}-{phase.lower()}"
        apply(session(each, kept))
        wait_phase(each, "Running")
        if phase != "Running":
            kubectl(
                *("patch", "session", each, "-n", SANDBOXES, "--type=merge"),
                *("-p", '{"spec":{"state":"Suspended"}}'),
            )
            wait_phase(each, "Suspended")
        if phase == "Pending":
            kubectl(
                *("patch", "session", each, "-n", SANDBOXES, "--type=merge"),
                *("-p", '{"spec":{"state":"Running"}}'),
            )
        delete_and_look(each)


def test_after_it_failed_and_after_it_terminated(environments: Make, name: str) -> None:
    env = environments(pool={"size": 1})
    apply(session(f"{name}-f", env))
    pod = wait_phase(f"{name}-f", "Running")["status"]["podName"]
    kubectl("delete", "pod", pod, "-n", SANDBOXES, "--wait=false")
    wait_phase(f"{name}-f", "Failed")
    delete_and_look(f"{name}-f")
    apply(session(f"{name}-t", env, lifecycle={"maxLifetime": "5s", "idleTimeout": "5s"}))
    wait_phase(f"{name}-t", "Terminated")
    delete_and_look(f"{name}-t")


@pytest.mark.parametrize("workspace", [{}, KEPT], ids=["ephemeral", "persistent"])
def test_an_environment_deleted_under_its_sessions(
    client: cloister.Client, name: str, workspace: dict[str, Any]
) -> None:
    """What runs goes on to its end; new sessions wait for an Environment of that name."""
    apply(environment(name, pool={"size": 1}, **({"workspace": workspace} if workspace else {})))
    wait_condition("environment", name, "Ready")
    with client.create_session(name) as running:
        running.bash("echo kept > kept.txt")
        kubectl("delete", "environment", name, "-n", SANDBOXES)
        wait_gone("environment", name)

        def only_mine() -> bool | None:
            pods = listing("pods", f"cloister.dev/environment={name}")
            names = [each["metadata"]["name"] for each in pods]
            return True if names == [running.pod_name] else None

        wait_for("the pool gone, the session's pod not", only_mine)
        assert running.bash("cat kept.txt").text == "kept"
        apply(session(f"{name}-new", name))
        waiting = wait_condition("session", f"{name}-new", "Ready", "False")
        assert condition(waiting, "Ready")["reason"] == "EnvironmentNotFound"
        with pytest.raises(cloister.CloisterError, match="no Environment"):
            client.create_session(name, wait=1)
        kubectl("delete", "session", f"{name}-new", "-n", SANDBOXES)
        assert running.bash("cat kept.txt").text == "kept"
    wait_gone("session", running.name)
    wait_gone("pod", running.pod_name)
