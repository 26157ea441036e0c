"""A ResourceQuota that is used up: who waits is told, nothing is half-done, and room is taken."""

import secrets
from collections.abc import Callable, Iterator

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    apply,
    get,
    kubectl,
    listing,
    wait_condition,
    wait_for,
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
