"""What the status of an Environment says of its pool and its network."""

import pytest

from cloister_operator.api import conditions
from cloister_operator.api.environment import PoolCounts
from cloister_operator.api.pod import PodView
from cloister_operator.plan.failure import Failure, Proof
from cloister_operator.plan.pool import Wanted
from cloister_operator.plan.trials import STUCK_AFTER, Trials
from cloister_operator.plan.verdict import counts, findings, refused
from support.operator_objects import NOW, pod

BROKEN = Failure(conditions.SETUP_FAILED, "setup ended with code 1")
ENDED = (conditions.POD_ENDED, "the exec server ended with code 1")
PROVEN = Proof(True, "tried and could not", NOW)


def test_counts_say_each_pod_once() -> None:
    pods = [
        pod("a"),
        pod("b", state="starting"),
        pod("c", state="claimed"),
        pod("d", state="claimed", end=ENDED),
        pod("e", state="starting"),
        pod("f", end=ENDED),
        pod("g", deleting=True),
    ]
    assert counts(pods, {"uid-of-e": BROKEN}, 5) == PoolCounts(
        ready=1, starting=1, claimed=1, failed=2, wanted=5
    )


def conditions_of(
    pods: list[PodView], size: int, proof: Proof | None = PROVEN, **failures: Failure
) -> dict[str, tuple[str, str]]:
    uids = {f"uid-of-{name}": failure for name, failure in failures.items()}
    return {
        each.type: (each.status, each.reason)
        for each in findings(pods, uids, Wanted("new", size), proof, NOW)
    }


@pytest.mark.parametrize(
    ("found", "ready", "pool"),
    [
        pytest.param(
            conditions_of([pod("a")], 1), ("True", "Available"), ("True", "PoolFilled"), id="full"
        ),
        pytest.param(
            conditions_of([], 0), ("True", "Available"), ("True", "PoolFilled"), id="of no pods"
        ),
        pytest.param(
            conditions_of([pod("a", state="starting")], 1),
            ("False", "PoolFilling"),
            ("False", "PoolFilling"),
            id="starting",
        ),
        pytest.param(
            conditions_of([pod("a")], 2), ("True", "Available"), ("False", "PoolFilling"), id="some"
        ),
        pytest.param(
            conditions_of([pod("a", recipe="old")], 1),
            ("True", "Available"),
            ("False", "PoolFilling"),
            id="old ones",
        ),
        pytest.param(
            conditions_of([pod("a", state="starting")], 1, a=BROKEN),
            ("False", "SetupFailed"),
            ("False", "SetupFailed"),
            id="setup",
        ),
        pytest.param(
            conditions_of([pod("a", state="starting", trouble=("Unschedulable", "no room"))], 1),
            ("False", "Unschedulable"),
            ("False", "Unschedulable"),
            id="no node",
        ),
        pytest.param(
            conditions_of([pod("a")], 1, a=BROKEN),
            ("False", "SetupFailed"),
            ("False", "SetupFailed"),
            id="warm and broken since",
        ),
        pytest.param(
            conditions_of([pod("a")], 1, Proof(False, "reached it", NOW)),
            ("False", "NetworkNotEnforced"),
            ("True", "PoolFilled"),
            id="open network",
        ),
    ],
)
def test_conditions(
    found: dict[str, tuple[str, str]], ready: tuple[str, str], pool: tuple[str, str]
) -> None:
    assert found[conditions.READY] == ready
    assert found[conditions.POOL_READY] == pool


def test_a_stuck_pod_is_told_of() -> None:
    stuck = pod("a", state="starting", ip="", created=NOW - STUCK_AFTER)
    assert conditions_of([stuck], 1)[conditions.POOL_READY] == ("False", "PodStuck")


def test_why_pods_fail_is_said_also_while_none_is_there() -> None:
    found = findings([], {}, Wanted("new", 1), PROVEN, NOW, Trials("new", 1, NOW, BROKEN))
    assert {each.type: each.reason for each in found}[conditions.POOL_READY] == "SetupFailed"
    other = findings([], {}, Wanted("newer", 1), PROVEN, NOW, Trials("new", 1, NOW, BROKEN))
    assert {each.type: each.reason for each in other}[conditions.POOL_READY] == "PoolFilling"


def test_the_network_is_unknown_until_a_pod_was_probed() -> None:
    assert conditions_of([], 1, None)[conditions.NETWORK_ENFORCED] == ("Unknown", "NotProven")
    assert conditions_of([], 1)[conditions.NETWORK_ENFORCED] == ("True", "Proven")


def test_a_network_that_was_seen_open_stays_so_while_its_environment_is_refused() -> None:
    why = Failure(conditions.REFERENCE_NOT_FOUND, "there is no Secret gone")
    opened = Proof(False, "it reached 10.0.0.1:443", NOW)
    (*others, network) = refused(why, [PROVEN, opened])
    assert (network.status, network.message) == ("False", opened.message)
    assert {(each.status, each.reason, each.message) for each in others} == {
        ("False", why.reason, why.message)
    }
    (*_, network) = refused(why, [PROVEN])
    assert (network.status, network.reason) == ("Unknown", why.reason)
