"""Sessions under gVisor beside ordinary ones: the platform chose user namespaces for each class."""

from collections.abc import Callable, Iterator

import pytest

import cloister
from support.cluster import apply, environment, get, kubectl, wait_gone, wait_reason

GVISOR = {"runtimeClassName": "gvisor"}
Pair = tuple["cloister.Session", "cloister.Session"]


@pytest.fixture(scope="module")
def pair(client: cloister.Client, environments: Callable[..., str]) -> Iterator[Pair]:
    """A session under gVisor, and one under the node's own runtime."""
    with (
        client.create_session(environments(isolation=GVISOR)) as held,
        client.create_session(environments()) as ordinary,
    ):
        yield held, ordinary


def host_users(session: "cloister.Session") -> bool:
    pod = get("pod", session.pod_name)
    assert pod is not None
    found: bool = pod["spec"]["hostUsers"]
    return found


def test_each_class_has_its_user_namespaces(pair: Pair) -> None:
    held, ordinary = pair
    assert (host_users(held), host_users(ordinary)) == (True, False)
    for each in pair:
        found = get("session", each.name)
        assert found is not None
        assert found["status"]["phase"] == "Running"


def test_a_class_that_the_platform_does_not_allow(name: str) -> None:
    apply(environment(name, isolation={"runtimeClassName": "kata"}))
    found = wait_reason("environment", name, "Ready", ("PolicyRefused",))
    assert "gvisor" in found["message"]
    kubectl("delete", "environment", name, "-n", "cloister-sandboxes")
    wait_gone("environment", name)
