"""Quotas that are used up, Kubernetes' and the platform's own: who waits is told, nothing is
half-done, and room is taken.
"""

import secrets
from collections.abc import Callable, Iterator

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    SYSTEM,
    apply,
    condition,
    get,
    kubectl,
    listing,
    session,
    wait_condition,
    wait_for,
    wait_phase,
    wait_reason,
)

Bound = Callable[[str, str], None]


@pytest.fixture
def bound(name: str) -> Iterator[Bound]:
    """Bound a resource of all pods of one priority class, which nobody else's pods have.

    The class and the quota have the test's name.
    """
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": 0,
    }

    def to(resource: str, most: str) -> None:
        scope = {"scopeName": "PriorityClass", "operator": "In", "values": [name]}
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": name, "namespace": SANDBOXES},
            "spec": {
                "hard": {resource: most},
                "scopeSelector": {"matchExpressions": [scope]},
            },
        }
        apply(priority, quota)

        def counted() -> bool | None:
            found = (get("resourcequota", name) or {}).get("status", {})
            return found.get("hard") == {resource: most} or None

        wait_for("the quota to count", counted)

    yield to
    kubectl("delete", "resourcequota", name, "-n", SANDBOXES, "--ignore-not-found")
    kubectl("delete", "priorityclass", name, "--ignore-not-found")


@pytest.mark.parametrize(
    ("resource", "one", "enough"),
    [("pods", "1", "9"), ("limits.cpu", "300m", "4"), ("limits.memory", "400Mi", "4Gi")],
)
def test_a_used_up_quota_keeps_the_next_waiting(
    client: cloister.Client,
    environments: Callable[..., str],
    bound: Bound,
    name: str,
    resource: str,
    one: str,
    enough: str,
) -> None:
    bound(resource, one)
    env = environments(
        pool={"size": 1},
        resources={"cpu": "200m", "memory": "256Mi"},
        scheduling={"priorityClassName": name},
    )
    wait_condition("environment", env, "PoolReady")
    later, request = f"{name}-later", secrets.token_hex(8)
    with client.create_session(env) as first:
        # There is no room for another pod in the place of the one that was claimed.
        said = wait_reason("environment", env, "PoolReady", ("QuotaExceeded",))["message"]
        assert name in said
        assert resource in said
        with pytest.raises(cloister.ResourceExhaustedError) as caught:
            client.create_session(env, name=later, request_id=request, wait=1)
        assert caught.value.reason == "QUOTA_EXCEEDED"
        assert caught.value.metadata["quota"] == name
        assert caught.value.retry_after
        said = wait_reason("session", later, "Ready", ("QuotaExceeded",))["message"]
        assert name in said
        waiting = get("session", later)
        assert waiting is not None
        assert waiting["status"]["phase"] == "Pending"
        assert first.bash("echo goes on").text == "goes on"
        _nothing_half_done(env, [first.pod_name])
        bound(resource, enough)
        # The same call again is answered with the session that waited.
        with client.create_session(env, name=later, request_id=request) as second:
            assert second.bash("echo at last").text == "at last"
            found = get("session", later)
            assert found is not None
            assert found["metadata"]["uid"] == waiting["metadata"]["uid"]
            wait_condition("environment", env, "PoolReady")


def _nothing_half_done(environment: str, expected: list[str]) -> None:
    """The Environment has these pods, and no pod's Secret is left without its pod."""
    pods = [
        each["metadata"]["name"]
        for each in listing("pods", f"cloister.dev/environment={environment}")
    ]
    assert pods == expected
    owned = [
        owner["name"]
        for each in listing("secrets")
        for owner in each["metadata"].get("ownerReferences", ())
        if owner["kind"] == "Pod" and owner["name"].startswith(f"{environment}-")
    ]
    assert owned == expected


LIMIT = "CLOISTER_MAX_SESSIONS_PER_NAMESPACE"


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Let so many sessions run in the namespace beside those that are there; 0: any number."""

    def to(most: int) -> None:
        ended = ("Failed", "Terminated")
        phases = [(each.get("status") or {}).get("phase") for each in listing("sessions")]
        others = sum(1 for each in phases if each not in ended) if most else 0
        value = f"{LIMIT}={most + others}"
        kubectl("set", "env", "deployment/cloister-operator", value, "-n", SYSTEM)
        kubectl("rollout", "status", "deployment/cloister-operator", "-n", SYSTEM, "--timeout=3m")

    yield to
    to(0)


@pytest.mark.disruptive
@pytest.mark.timeout(600)
def test_sessions_of_kubectl_wait_for_their_namespace_by_age(
    client: cloister.Client,
    environments: Callable[..., str],
    limit: Callable[[int], None],
    name: str,
) -> None:
    """They are there before anybody can refuse them, unlike those of the Sessions API."""
    env, other = environments(pool={"size": 2}), environments(pool={"size": 1})
    limit(2)
    made = [f"{name}-{n}" for n in range(4)]
    for each in made:
        apply(session(each, other if each == made[2] else env))
    try:
        for each in made[:2]:
            wait_phase(each, "Running")
        for each in made[2:]:
            said = wait_reason("session", each, "Ready", ("NamespaceFull",))["message"]
            assert "sessions.maxPerNamespace" in said
            assert SANDBOXES in said
        with pytest.raises(cloister.ResourceExhaustedError) as caught:
            client.create_session(env, wait=1)
        assert caught.value.metadata["quota"] == "sessions.maxPerNamespace"
        _wait_without_a_pod(made[2:])

        kubectl("delete", "session", made[0], "-n", SANDBOXES)
        wait_phase(made[2], "Running")
        assert client.get_session(made[2]).bash("echo my turn").text == "my turn"
        assert condition(get("session", made[3]), "Ready")["reason"] == "NamespaceFull"
        _wait_without_a_pod(made[3:])
        # One that runs goes on, whatever waits.
        assert client.get_session(made[1]).bash("echo goes on").text == "goes on"

        limit(0)
        wait_phase(made[3], "Running")
    finally:
        kubectl("delete", "session", *made, "-n", SANDBOXES, "--ignore-not-found")


def _wait_without_a_pod(names: list[str]) -> None:
    for each in names:
        found = get("session", each)
        assert found is not None
        assert found["status"]["phase"] == "Pending"
        assert not listing("pods", f"cloister.dev/session={found['metadata']['uid']}")
