"""What gateways are to hold, and who waits for whom until they do."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator import names
from cloister_operator.api.gateway import GatewayPod, gateway_view
from cloister_operator.api.pod import PodView
from cloister_operator.plan import grants
from cloister_operator.plan.grants import (
    FRESH_MARGIN,
    GONE_MARGIN,
    SILENT_FOR,
    Held,
    State,
    state_of,
)
from support.operator_objects import NOW, pod

HOSTS = ("api.example", "*.files.example")


def open_pod(name: str = "p1", **fields: Any) -> PodView:
    return pod(name, **({"network": names.NETWORK_GATEWAY, "hosts": HOSTS} | fields))


def gateway(name: str = "g1", **fields: Any) -> GatewayPod:
    given: dict[str, Any] = {
        "namespace": "cloister-system",
        "name": name,
        "uid": f"uid-of-{name}",
        "created": NOW,
        "ip": "10.2.0.1",
        "ready": True,
        "ended": False,
        "gone_at": None,
        "agent_ran": True,
        "restarts": 0,
    }
    return GatewayPod(**(given | fields))


def holding(*pods: PodView) -> Held:
    return Held().acknowledging(state_of(pods, ()))


def test_a_pod_has_the_hosts_it_was_made_with() -> None:
    one, two = open_pod("a"), open_pod("b", ip="10.1.0.2", hosts=("other.example",))
    state = state_of([one, two], ())
    assert {a: state.policies[s.policy] for a, s in state.sources.items()} == {
        "10.1.0.1": ("*.files.example", "api.example"),
        "10.1.0.2": ("other.example",),
    }
    assert [each.pod_uid for each in state.sources.values()] == [one.uid, two.uid]


def long_hosts(number: int, count: int = 256) -> tuple[str, ...]:
    label = "x" * 60
    return tuple(f"h{each}.n{number}.{label}.{label}.{label}.example" for each in range(count))


def test_nobody_has_so_many_hosts_that_gateways_refuse_what_others_may_reach() -> None:
    greedy = [
        open_pod(
            f"g{each}",
            namespace=f"greedy-{each % 2}",
            ip=f"10.2.{each // 250}.{1 + each % 250}",
            hosts=long_hosts(each),
            created=NOW + timedelta(seconds=each),
        )
        for each in range(600)
    ]
    # It is the youngest of all, and comes last.
    honest = open_pod("honest", namespace="honest", ip="10.3.0.1", created=NOW + timedelta(days=1))
    state = state_of([*greedy, honest], ())
    assert state.holder(honest) == honest.uid
    size = sum(len(host) for hosts in state.policies.values() for host in hosts)
    assert grants.MAX_BYTES // 2 < size <= grants.MAX_BYTES
    kept = [each for each in greedy if state.holder(each)]
    assert state.left_out == len(greedy) - len(kept)
    # The oldest of each namespace, as many of one as of the other.
    assert kept == greedy[: len(kept)]
    assert abs(sum(each.namespace == "greedy-0" for each in kept) - len(kept) / 2) <= 1
    # Who ends makes room, and who comes takes nothing from those who run.
    assert set(state_of([*greedy[4:], honest], ()).sources) >= {each.ip for each in kept[4:]}
    more = [
        replace(
            greedy[0],
            uid="new",
            ip="10.4.0.1",
            hosts=long_hosts(-1),
            created=NOW + timedelta(hours=1),
        )
    ]
    assert set(state_of([*greedy, *more, honest], ()).sources) == set(state.sources)


def test_there_are_no_more_policies_than_gateways_take() -> None:
    pods = [
        open_pod(
            f"p{each}",
            ip=f"10.{each >> 16}.{each >> 8 & 255}.{each & 255}",
            hosts=(f"h{each}.example",),
        )
        for each in range(1, grants.MAX_POLICIES + 100)
    ]
    state = state_of(pods, ())
    assert 0.99 * grants.MAX_POLICIES < len(state.policies) <= grants.MAX_POLICIES
    assert len(state.sources) == len(state.policies) == len(pods) - state.left_out
    # Many pods with few policies are no crowd.
    same = [replace(each, hosts=HOSTS) for each in pods]
    assert state_of(same, ()).left_out == 0


def test_pods_with_the_same_hosts_share_a_policy() -> None:
    pods = [open_pod(f"p{n}", ip=f"10.1.0.{n}", hosts=HOSTS[:: 1 - 2 * (n % 2)]) for n in range(9)]
    assert len(state_of(pods, ()).policies) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"network": names.NETWORK_NONE},
        {"network": names.NETWORK_UNRESTRICTED},
        {"network": "anything"},
        {"ip": ""},
        {"ip": "not an address"},
        {"ip": "127.0.0.1"},
        {"deleting": True},
        {"end": ("OOMKilled", "it used too much")},
    ],
)
def test_others_are_not_there_at_all(changes: dict[str, Any]) -> None:
    assert state_of([open_pod(**changes)], ()) == State()


def test_one_that_is_about_to_be_deleted_has_no_right() -> None:
    gone, stays = open_pod("a"), open_pod("b", ip="10.1.0.2")
    assert list(state_of([gone, stays], {gone.uid}).sources) == ["10.1.0.2"]


@pytest.mark.parametrize("withheld", [(), ("uid-of-a",), ("uid-of-b",)])
def test_an_address_that_two_pods_have_gives_neither_of_them_a_right(
    withheld: tuple[str, ...],
) -> None:
    state = state_of([open_pod("a"), open_pod("b"), open_pod("c", ip="10.1.0.2")], withheld)
    assert list(state.sources) == ["10.1.0.2"]


@pytest.mark.parametrize(
    "wrong",
    [
        "a b",
        "*.",
        "*",
        "https://a.example",
        "a.example:443",
        "ä.example",
        "A.example",
        "-",
        "a",
        "a.1",
        "a_b.example",
    ],
)
def test_an_annotation_that_names_no_host_gives_nothing(wrong: str) -> None:
    """Gateways refuse a whole state for one wrong name: nobody may hold the others up by it."""
    state = state_of([open_pod("a", hosts=("good.example", wrong))], ())
    assert list(state.policies.values()) == [()]


def test_a_state_is_the_same_whatever_the_order() -> None:
    pods = [open_pod(f"p{n}", ip=f"10.1.0.{n}", hosts=(f"h{n % 3}.example",)) for n in range(20)]
    there, back = state_of(pods, (), ["10.0.0.0/8", "::/0"]), state_of(pods[::-1], (), ["::/0"] * 2)
    assert (list(there.sources), list(there.policies)) == (list(back.sources), list(back.policies))
    assert there != back
    assert there.denied_ranges == ("10.0.0.0/8", "::/0")


# --- who waits for whom --------------------------------------------------------------------------


def granted(wanted: PodView, *gateways: tuple[GatewayPod, Held]) -> bool:
    return grants.granted(wanted, gateways)


def test_a_pod_is_granted_when_every_gateway_holds_it() -> None:
    wanted = open_pod()
    there, not_there = holding(wanted), holding()
    assert granted(wanted, (gateway("a"), there), (gateway("b"), there))
    assert not granted(wanted, (gateway("a"), there), (gateway("b"), not_there))
    assert not granted(wanted, (gateway("a"), there), (gateway("b"), Held()))


def test_without_a_gateway_that_is_ready_nobody_is_granted_anything() -> None:
    wanted = open_pod()
    assert not granted(wanted)
    assert not granted(wanted, (gateway(ready=False), holding(wanted)))


def test_one_that_will_be_ready_at_once_counts() -> None:
    """Its readiness needs one state only: whoever is led to it a moment later must find theirs."""
    wanted = open_pod()
    well = gateway("a"), holding(wanted)
    assert not granted(wanted, well, (gateway("b", ready=False), holding()))
    assert granted(wanted, well, (gateway("b", ready=False), holding(wanted)))


def test_nobody_is_led_to_one_that_leaves() -> None:
    wanted = open_pod()
    leaving = gateway("b", gone_at=NOW)
    assert granted(wanted, (gateway("a"), holding(wanted)), (leaving, holding()))


def test_an_address_that_may_still_be_another_pods_grants_nothing() -> None:
    """Also where nobody is led to: a pod can dial a gateway that it was not led to."""
    old, new = open_pod("old"), open_pod("new")
    well = gateway("a"), holding(new)
    for other in (
        holding(old),
        holding().sending(state_of([old], ())),
        holding(new).sending(state_of([old], ())),
        Held(),
    ):
        assert not granted(new, well, (gateway("b", gone_at=NOW, ready=False), other))
    assert granted(new, well, (gateway("b", gone_at=NOW), holding()))


def test_a_state_on_its_way_that_says_the_same_takes_nothing() -> None:
    wanted = open_pod()
    more = state_of([wanted, open_pod("more", ip="10.1.0.2")], ())
    assert granted(wanted, (gateway(), holding(wanted).sending(more)))


def test_a_right_is_gone_when_no_gateway_may_have_it() -> None:
    old = open_pod()
    for held in (Held(), holding(old), holding().sending(state_of([old], ()))):
        assert not grants.revoked(old.uid, [(gateway("a"), holding()), (gateway("b"), held)])
    answered = holding().sending(state_of([old], ())).acknowledging(State())
    assert grants.revoked(old.uid, [(gateway("a"), answered)])
    assert grants.revoked(old.uid, [])


def test_what_was_sent_counts_whatever_was_sent_after_it() -> None:
    old = open_pod()
    held = holding().sending(state_of([old], ())).sending(State()).sending(State())
    assert held.may_hold(old.uid)
    assert held.may_hold_another(open_pod("new"))
    assert held.doubtful == {"10.1.0.1": {old.uid}}


SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("changes", "after", "expected"),
    [
        ({}, timedelta(days=1), True),
        ({"ready": False}, timedelta(days=1), True),
        ({"ended": True}, timedelta(), False),
        ({"agent_ran": False, "ready": False}, timedelta(), False),
        ({"gone_at": NOW}, GONE_MARGIN, True),
        ({"gone_at": NOW}, GONE_MARGIN + SECOND, False),
    ],
)
def test_a_gateway_lives_until_it_can_serve_nobody(
    changes: dict[str, Any], after: timedelta, expected: bool
) -> None:
    assert grants.lives(gateway(**changes), NOW + after) is expected


@pytest.mark.parametrize(
    ("changes", "after", "expected"),
    [
        ({"ready": False}, SILENT_FOR, True),
        ({"ready": False}, SILENT_FOR - SECOND, False),
        ({"ready": True}, timedelta(days=1), False),
        ({"ready": False, "gone_at": NOW}, SILENT_FOR, False),
        ({"ready": False, "agent_ran": False}, SILENT_FOR, False),
        ({"ready": False, "ended": True}, SILENT_FOR, False),
    ],
)
def test_one_that_is_not_ready_and_stays_silent_is_to_go(
    changes: dict[str, Any], after: timedelta, expected: bool
) -> None:
    assert grants.overdue(gateway(**changes), NOW, NOW + after) is expected


def test_what_a_gateway_held_before_nobody_knows() -> None:
    wanted = open_pod()
    well, began = (gateway("a"), holding(wanted)), NOW
    old = gateway("b", ready=False, created=NOW + FRESH_MARGIN)
    assert not granted(wanted, well, (old, grants.first_known(old, began)))
    new = gateway("b", ready=False, created=NOW + FRESH_MARGIN + SECOND)
    assert granted(wanted, well, (new, grants.first_known(new, began)))
    # It may be made Ready by another operator's state only.
    assert not granted(wanted, well, (replace(new, ready=True), grants.first_known(new, began)))


# --- what holds whatever happens -----------------------------------------------------------------


class Gateway:
    """A gateway that gets states late, twice or never, and answers or not."""

    def __init__(self, name: str) -> None:
        self.pod = gateway(name)
        self.held = Held()
        self.really: State | None = None
        self.at = 0

    def take(self, state: State, revision: int) -> None:
        """A state arrives."""
        if revision >= self.at:
            self.really, self.at = state, revision


STEP = st.tuples(st.sampled_from(["add", "drop", "leave", "push", "lose", "vanish"]), st.integers())


@given(st.lists(STEP, max_size=60))
def test_no_pod_ever_has_the_right_of_another_where_it_is_granted_or_was_revoked(
    steps: Iterable[tuple[str, int]],
) -> None:
    gateways = [Gateway("a"), Gateway("b")]
    pods: dict[str, PodView] = {}
    withheld: set[str] = set()
    under_way: list[tuple[Gateway, State, int]] = []
    revision = 0
    for what, number in steps:
        mine = gateways[number % 2]
        name = sorted(pods)[number % len(pods)] if pods else ""
        if what == "add":
            made = open_pod(f"p{revision}-{len(pods)}", ip=f"10.1.0.{number % 3}")
            pods[made.uid] = made
        elif what == "leave" and name:
            pods[name] = replace(pods[name], deleting=True)
        elif what == "drop" and name:
            withheld.add(name)
        elif what in ("push", "lose"):
            revision += 1
            state = state_of(pods.values(), withheld)
            mine.held = mine.held.sending(state)
            if what == "lose":
                under_way.append((mine, state, revision))
            else:
                mine.take(state, revision)
                mine.held = mine.held.acknowledging(state)
        elif what == "vanish" and under_way:
            late, state, at = under_way.pop(number % len(under_way))
            late.take(state, at)
        present = [(each.pod, each.held) for each in gateways]
        for each in pods.values():
            really = [each_.really.holder(each) for each_ in gateways if each_.really]
            if grants.granted(each, present):
                assert set(really) == {each.uid}
            if grants.revoked(each.uid, present):
                assert each.uid not in really


def test_a_gateways_pod_is_read_as_the_api_server_has_it() -> None:
    raw = {
        "metadata": {
            "namespace": "cloister-system",
            "name": "g1",
            "uid": "u1",
            "creationTimestamp": "2026-05-01T12:00:00Z",
        }
    }
    assert gateway_view(raw) == gateway("g1", uid="u1", ip="", ready=False, agent_ran=False)
    raw["metadata"]["deletionTimestamp"] = "2026-05-01T12:00:00Z"
    status = {
        "podIP": "10.2.0.1",
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {"name": "front", "restartCount": 7, "state": {"running": {}}},
            {"name": "agent", "restartCount": 2, "state": {"waiting": {}}},
        ],
    }
    found = gateway_view({**raw, "status": status})
    assert found == gateway("g1", uid="u1", gone_at=NOW, restarts=2)
    assert not gateway_view(
        {**raw, "status": {**status, "phase": "Running", "conditions": []}}
    ).ready
    assert gateway_view({**raw, "status": {**status, "phase": "Failed"}}).ended
