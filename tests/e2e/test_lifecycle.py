"""How sessions come and go: by kubectl, by policy, with their Environment; and what is left."""

import base64
import json
from collections.abc import Callable

import pytest
from cryptography import x509

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

OURS = "app.kubernetes.io/managed-by=cloister"
KINDS = ("pods", "secrets", "configmaps", "persistentvolumeclaims", "services", "networkpolicies")


def test_a_session_made_with_kubectl(environments: Callable[..., str], name: str) -> None:
    env = environments()
    apply(session(name, env))
    found = wait_phase(name, "Running")
    status = found["status"]
    secret = get("secret", status["credentialsSecretName"])
    assert secret is not None
    assert secret["type"] == "kubernetes.io/tls"
    assert sorted(secret["data"]) == ["ca.crt", "tls.crt", "tls.key"]
    certificate = x509.load_pem_x509_certificate(base64.b64decode(secret["data"]["tls.crt"]))
    uris = certificate.extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    ).value.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == [f"session:{found['metadata']['uid']}"]
    assert condition(found, "Ready")["status"] == "True"

    def event() -> str | None:
        events = listing("events")
        return next(
            (
                each["reason"]
                for each in events
                if each["involvedObject"].get("name") == name and each["reason"] == "Claimed"
            ),
            None,
        )

    assert wait_for("an event about the claim", event) == "Claimed"
    kubectl("delete", "session", name, "-n", SANDBOXES)
    wait_gone("pod", str(status["podName"]))
    wait_gone("secret", str(status["credentialsSecretName"]))


def test_a_session_without_a_warm_pod_gets_a_cold_one(
    client: cloister.Client, environments: Callable[..., str]
) -> None:
    env = environments(pool={"size": 0})
    with client.create_session(env) as made:
        assert made.bash("echo cold").text == "cold"


def test_unknown_environment(name: str) -> None:
    apply(session(name, "no-such-environment"))
    try:
        found = wait_condition("session", name, "Ready", "False")
        assert condition(found, "Ready")["reason"] == "EnvironmentNotFound"
        assert "no-such-environment" in condition(found, "Ready")["message"]
    finally:
        kubectl("delete", "session", name, "-n", SANDBOXES)


def test_max_sessions_makes_the_next_one_wait(environments: Callable[..., str], name: str) -> None:
    env = environments(pool={"size": 1, "maxSessions": 1})
    apply(session(f"{name}-a", env))
    wait_phase(f"{name}-a", "Running")
    apply(session(f"{name}-b", env))
    waiting = wait_condition("session", f"{name}-b", "Ready", "False")
    assert condition(waiting, "Ready")["reason"] == "Queued"
    kubectl("delete", "session", f"{name}-a", "-n", SANDBOXES)
    wait_phase(f"{name}-b", "Running")
    kubectl("delete", "session", f"{name}-b", "-n", SANDBOXES)


def test_an_idle_session_ends(environments: Callable[..., str], name: str) -> None:
    env = environments(lifecycle={"idleTimeout": "3s"})
    apply(session(name, env))
    found = wait_phase(name, "Terminated")
    assert condition(found, "Ready")["reason"] == "IdleTimeout"
    wait_gone("pod", str(found["status"]["podName"]))
    kubectl("delete", "session", name, "-n", SANDBOXES)


def test_a_session_ends_at_its_max_lifetime(environments: Callable[..., str], name: str) -> None:
    env = environments()
    apply(session(name, env, lifecycle={"maxLifetime": "4s", "idleTimeout": "4s"}))
    found = wait_phase(name, "Terminated")
    assert condition(found, "Ready")["reason"] in ("MaxLifetime", "IdleTimeout")
    kubectl("delete", "session", name, "-n", SANDBOXES)


def test_a_lost_pod_fails_the_session_with_the_reason(
    environments: Callable[..., str], name: str
) -> None:
    env = environments()
    apply(session(name, env))
    found = wait_phase(name, "Running")
    kubectl("delete", "pod", str(found["status"]["podName"]), "-n", SANDBOXES, "--wait=false")
    failed = wait_phase(name, "Failed")
    assert condition(failed, "Ready")["reason"] == "PodDeleted"
    kubectl("delete", "session", name, "-n", SANDBOXES)


def test_a_changed_environment_replaces_warm_pods_only(
    client: cloister.Client, environments: Callable[..., str]
) -> None:
    env = environments(env=[{"name": "V", "value": "1"}])
    with client.create_session(env) as running:
        before = wait_phase(running.name, "Running")
        apply(environment(env, env=[{"name": "V", "value": "2"}]))

        def rolled() -> dict[str, object] | None:
            found = get("environment", env)
            assert found is not None
            new = found["status"].get("recipeHash")
            warm = listing("pods", f"cloister.dev/environment={env},cloister.dev/state=warm")
            hashes = {pod["metadata"]["labels"]["cloister.dev/recipe"] for pod in warm}
            return found if new != before["status"]["recipeHash"] and hashes == {new} else None

        wait_for("warm pods of the new recipe only", rolled)
        assert running.bash("echo $V").text == "1"
        with client.create_session(env) as fresh:
            assert fresh.bash("echo $V").text == "2"


def test_a_wrong_change_leaves_what_runs_running(
    client: cloister.Client, environments: Callable[..., str]
) -> None:
    env = environments()
    with client.create_session(env) as running:
        wrong = environment(
            env, files=[{"path": "/etc/x", "secretKeyRef": {"name": "absent", "key": "x"}}]
        )
        apply(wrong)
        found = wait_reason("environment", env, "Ready", ("ReferenceNotFound",))
        assert found["status"] == "False"
        assert running.bash("echo fine").text == "fine"
        warm = f"cloister.dev/environment={env},cloister.dev/state=warm"
        assert wait_for("the pool of the last good recipe", lambda: listing("pods", warm) or None)


def test_deletion_leaves_nothing_behind(client: cloister.Client, name: str) -> None:
    apply(environment(name, files=[{"path": "/etc/a", "content": "a"}], pool={"size": 2}))
    wait_condition("environment", name, "Ready")
    made = client.create_session(name)
    made.bash("echo x > file")
    apply(session(f"{name}-k", name))
    wait_phase(f"{name}-k", "Running")
    made.close()
    kubectl("delete", "session", f"{name}-k", "-n", SANDBOXES)
    kubectl("delete", "environment", name, "-n", SANDBOXES)

    def left() -> list[str]:
        found = []
        for kind in KINDS:
            for each in listing(kind, f"{OURS},cloister.dev/environment={name}"):
                found.append(f"{kind}/{each['metadata']['name']}")
        for each in listing("secrets"):
            if each["metadata"]["name"].startswith(name):
                found.append(f"secrets/{each['metadata']['name']}")
        return found

    wait_for(f"nothing of {name} left", lambda: True if not left() else None)


def test_the_session_api_and_kubectl_agree(
    client: cloister.Client, environments: Callable[..., str]
) -> None:
    env = environments()
    with client.create_session(env) as made:
        assert made.name in [each.name for each in client.list_sessions(environment=env)]
    wait_gone("session", made.name)
    with pytest.raises(cloister.NotFoundError):
        client.delete_session(made.name)
    assert json.loads(kubectl("get", "sessions", "-n", SANDBOXES, "-o", "json").out)
