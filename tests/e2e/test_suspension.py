"""Suspend and Resume on real volumes: what is kept, what is not, and what the meters say."""

from collections.abc import Callable
from typing import Any

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    apply,
    condition,
    get,
    kubectl,
    listing,
    session,
    wait_for,
    wait_gone,
    wait_phase,
    wait_reason,
)

Make = Callable[..., str]
KEPT = {"persistent": True, "size": "64Mi"}

FILL = """
set -e
mkdir -p deep/er && cd deep
printf 'one\\n' > plain.txt && chmod 640 plain.txt
printf '#!/bin/sh\\necho ran\\n' > er/run && chmod 755 er/run
ln -s er/run link && ln -s /nowhere dangling
ln plain.txt hard.txt
printf 'n' > 'a name
with a line end'
touch -d '2001-02-03 04:05:06.789' plain.txt
chmod 2750 er && touch -d '2002-02-02 02:02:02' er
printf 'result' > /mnt/session/outputs/result.txt
printf 'gone' > /tmp/gone.txt
printf 'gone' > ~/gone.txt
"""
LIST = (
    "cd /workspace && find deep -printf '%p|%y|%m|%T@|%l|%n|%s\\n' | sort; sha256sum deep/plain.txt"
)


@pytest.fixture(scope="module")
def persistent(environments: Make) -> str:
    """An Environment whose workspaces persist."""
    return environments(workspace=KEPT, pool={"size": 1})


def state(name: str, wanted: str) -> None:
    """Change spec.state, as a person does with kubectl."""
    kubectl(
        *("patch", "session", name, "-n", SANDBOXES, "--type=merge"),
        *("-p", f'{{"spec":{{"state":"{wanted}"}}}}'),
    )


def pods_of(name: str) -> list[dict[str, Any]]:
    found = get("session", name)
    assert found is not None
    return listing("pods", f"cloister.dev/session={found['metadata']['uid']}")


def test_the_workspace_comes_back_as_it_was(client: cloister.Client, persistent: str) -> None:
    with client.create_session(persistent, env={"MINE": "1"}) as made:
        first = (get("session", made.name) or {})["status"]
        filled = made.bash(FILL)
        assert filled.exit_code == 0, filled.text
        before = made.bash(LIST).text
        made.bash("cd deep && export SHELL_ONLY=1; sleep 600 &")
        claim = first["workspaceClaim"]

        info = client.suspend_session(made.name)
        assert (info.phase, info.reason) == ("Suspended", "Suspended")
        wait_gone("pod", first["podName"])
        suspended = get("session", made.name)
        assert suspended is not None
        assert condition(suspended, "Suspended")["status"] == "True"
        assert "endpoint" not in suspended["status"]
        assert (get("persistentvolumeclaim", claim) or {})["status"]["phase"] == "Bound"
        with pytest.raises(cloister.FailedPreconditionError):
            client.get_session(made.name)

        with client.resume_session(made.name) as again:
            resumed = get("session", made.name)
            assert resumed is not None
            assert resumed["status"]["podUID"] != first["podUID"]
            assert again.info.restarts == 1
            assert again.bash(LIST).text == before
            assert again.bash("deep/link").text == "ran"
            outputs = again.bash("cat /mnt/session/outputs/result.txt; ls /tmp/gone.txt ~/gone.txt")
            assert outputs.text.startswith("result")
            assert "No such file" in outputs.text
            shell = again.bash("pwd; echo ${SHELL_ONLY:-fresh} $MINE; pgrep -x sleep || echo none")
            assert shell.text == "/workspace\nfresh 1\nnone"
            assert condition(resumed, "Ready")["reason"] == "Resumed"
            assert "afresh" in condition(resumed, "Ready")["message"]
            assert condition(resumed, "Suspended")["status"] == "False"
    wait_gone("session", made.name)
    wait_gone("persistentvolumeclaim", claim)


def test_meters_stand_still_while_it_is_suspended(client: cloister.Client, persistent: str) -> None:
    with client.create_session(persistent) as made:
        made.bash("sleep 2")
        client.suspend_session(made.name)
        first = (get("session", made.name) or {})["status"]
        assert first["activeSeconds"] >= 2
        assert first["runningSeconds"] >= first["activeSeconds"]
        with client.resume_session(made.name) as again:
            again.bash("sleep 1")
            client.suspend_session(made.name)
            second = (get("session", made.name) or {})["status"]
        assert second["activeSeconds"] >= first["activeSeconds"] + 1
        assert second["startedAt"] == first["startedAt"]


def test_with_kubectl_and_twice(persistent: str, name: str) -> None:
    apply(session(name, persistent))
    first = wait_phase(name, "Running")["status"]
    for _ in range(2):
        state(name, "Suspended")
        wait_phase(name, "Suspended")
        state(name, "Running")
        again = wait_phase(name, "Running")["status"]
    assert again["restarts"] == 2
    assert again["workspaceClaim"] == first["workspaceClaim"]
    assert again["podUID"] != first["podUID"]
    kubectl("delete", "session", name, "-n", SANDBOXES)
    wait_gone("pod", again["podName"])
    wait_gone("persistentvolumeclaim", again["workspaceClaim"])


def test_asked_to_and_fro_before_it_was_done(persistent: str, name: str) -> None:
    apply(session(name, persistent))
    wait_phase(name, "Running")
    for wanted in ("Suspended", "Running", "Suspended", "Running"):
        state(name, wanted)

    def one_pod() -> bool | None:
        status = (get("session", name) or {}).get("status") or {}
        uids = [each["metadata"]["uid"] for each in pods_of(name)]
        return True if status.get("phase") == "Running" and uids == [status["podUID"]] else None

    wait_for("one pod, the status's", one_pod)
    kubectl("delete", "session", name, "-n", SANDBOXES)
    wait_gone("session", name)


def test_a_session_without_a_volume_is_not_suspended(
    client: cloister.Client, environments: Make
) -> None:
    with client.create_session(environments()) as made:
        with pytest.raises(cloister.FailedPreconditionError, match=r"workspace\.persistent"):
            client.suspend_session(made.name)
        state(made.name, "Suspended")
        wait_reason("session", made.name, "Suspended", ("WorkspaceNotPersistent",))
        assert made.bash("echo alive").text == "alive"


def test_idle_by_the_exec_servers_word(
    client: cloister.Client, environments: Make, name: str
) -> None:
    """A command that runs for longer than the idle timeout, without a call, is not idle."""
    env = environments(
        workspace=KEPT, pool={"size": 1}, lifecycle={"idleTimeout": "4s", "onIdle": "Suspend"}
    )
    with client.create_session(env, name=name) as made:
        done = made.bash("for i in $(seq 10); do sleep 1; done; echo kept > kept.txt; echo done")
        assert done.text == "done"
        found = get("session", name)
        assert found is not None
        assert (found["status"]["phase"], found["status"].get("restarts", 0)) == ("Running", 0)
        suspended = wait_phase(name, "Suspended")
        assert condition(suspended, "Suspended")["reason"] == "IdleTimeout"
        assert suspended["spec"]["state"] == "Suspended"
        assert suspended["status"]["activeSeconds"] >= 10
        with client.resume_session(name) as again:
            assert again.bash("cat kept.txt").text == "kept"


def test_a_suspended_session_ends_at_its_max_lifetime(
    client: cloister.Client, persistent: str
) -> None:
    made = client.create_session(persistent, max_lifetime=20)
    client.suspend_session(made.name)
    ended = wait_phase(made.name, "Terminated")
    assert condition(ended, "Ready")["reason"] == "MaxLifetime"
    with pytest.raises(cloister.FailedPreconditionError):
        client.resume_session(made.name)
    client.delete_session(made.name)


def test_the_claim_of_a_suspended_session_deleted(
    client: cloister.Client, persistent: str, name: str
) -> None:
    client.create_session(persistent, name=name)
    client.suspend_session(name)
    claim = (get("session", name) or {})["status"]["workspaceClaim"]
    kubectl("delete", "persistentvolumeclaim", claim, "-n", SANDBOXES)
    state(name, "Running")
    failed = wait_phase(name, "Failed")
    assert condition(failed, "Ready")["reason"] == "VolumeLost"
    client.delete_session(name)
