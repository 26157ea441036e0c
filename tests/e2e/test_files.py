"""Files, variables and the setup script of an Environment, as its sandboxes see them."""

from collections.abc import Callable

import cloister
from support.cluster import (
    SANDBOXES,
    apply,
    condition,
    environment,
    get,
    kubectl,
    wait_condition,
    wait_for,
    wait_gone,
)

Labels = dict[str, str]


def config_map(name: str, labels: Labels) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": SANDBOXES, "labels": labels},
        "data": {"rules.txt": "be kind\n"},
    }


def secret(name: str, labels: Labels) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": SANDBOXES, "labels": labels},
        "stringData": {"token": "s3cret"},
    }


ALLOWED = {"cloister.dev/allow-in-sandbox": "true"}


def test_files_have_the_declared_paths_modes_and_contents(
    client: cloister.Client, environments: Callable[..., str], name: str
) -> None:
    apply(config_map(name, ALLOWED), secret(name, ALLOWED))
    try:
        env = environments(
            files=[
                {"path": "/etc/app/settings.ini", "mode": "0444", "content": "[app]\nx=1\n"},
                {"path": "/opt/bin/hello", "mode": "0755", "content": "#!/bin/sh\necho hello\n"},
                {
                    "path": "/workspace/notes.md",
                    "mode": "0640",
                    "readOnly": False,
                    "content": "# Notes\n",
                },
                {
                    "path": "/mnt/session/uploads/rules.txt",
                    "configMapKeyRef": {"name": name, "key": "rules.txt"},
                },
                {
                    "path": "/workspace/.token",
                    "mode": "0600",
                    "readOnly": False,
                    "secretKeyRef": {"name": name, "key": "token"},
                },
            ],
            env=[
                {"name": "GREETING", "value": "good morning"},
                {"name": "TOKEN", "secretKeyRef": {"name": name, "key": "token"}},
            ],
            setup="echo prepared-by-$USER > /workspace/setup.txt",
        )
        with client.create_session(env) as session:
            assert session.bash("stat -c '%a %s' /etc/app/settings.ini").text == "444 10"
            assert session.bash("cat /etc/app/settings.ini").text == "[app]\nx=1"
            assert session.bash("stat -c %a /opt/bin/hello; /opt/bin/hello").text == "755\nhello"
            assert session.bash("echo more >> /etc/app/settings.ini").is_error
            assert session.bash("stat -c '%a %U' /workspace/notes.md").text == "640 agent"
            assert not session.bash("echo more >> /workspace/notes.md").is_error
            assert session.read("/mnt/session/uploads/rules.txt").text == "be kind\n"
            assert session.bash("stat -c %a .token; cat .token").text == "600\ns3cret"
            assert session.bash('echo "$GREETING $TOKEN"').text == "good morning s3cret"
            assert session.read("setup.txt").text == "prepared-by-agent\n"
    finally:
        kubectl("delete", "configmap,secret", name, "-n", SANDBOXES)


def test_a_session_brings_its_own_files_and_variables(
    client: cloister.Client, environments: Callable[..., str]
) -> None:
    env = environments(env=[{"name": "WHO", "value": "environment"}])
    with client.create_session(
        env,
        env={"WHO": "session"},
        files=[cloister.File("/workspace/task.txt", b"do it\n", mode=0o600)],
    ) as session:
        assert session.bash("echo $WHO; stat -c %a task.txt; cat task.txt").text == (
            "session\n600\ndo it"
        )


def test_a_secret_without_the_platforms_label_is_not_read(name: str) -> None:
    apply(secret(name, {}))
    apply(
        environment(
            name,
            files=[{"path": "/etc/token", "secretKeyRef": {"name": name, "key": "token"}}],
        )
    )
    try:
        found = wait_condition("environment", name, "Ready", "False")
        ready = next(each for each in found["status"]["conditions"] if each["type"] == "Ready")
        assert ready["reason"] == "ReferenceRefused"
        assert "spec.files[0].secretKeyRef" in ready["message"]
        assert "cloister.dev/allow-in-sandbox" in ready["message"]
    finally:
        kubectl("delete", "environment,secret", name, "-n", SANDBOXES)
        wait_gone("environment", name)


def test_a_failing_setup_script_is_reported(name: str) -> None:
    apply(environment(name, setup="echo no such luck >&2; exit 3"))
    try:

        def failed() -> dict[str, str] | None:
            pool = condition(get("environment", name), "PoolReady")
            return pool if pool.get("reason") == "SetupFailed" else None

        pool = wait_for("PoolReady with the reason SetupFailed", failed)
        assert pool["status"] == "False"
        assert "no such luck" in pool["message"]
        assert condition(get("environment", name), "Ready")["status"] == "False"
    finally:
        kubectl("delete", "environment", name, "-n", SANDBOXES)
        wait_gone("environment", name)
