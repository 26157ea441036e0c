"""States that change; each test has a gateway that it may disturb."""

import asyncio
import contextlib
import json
import ssl
import threading

import grpc
import pytest

from cloister_api.egress.v1 import egress_pb2
from cloister_gateway.front import Front, Session
from cloister_gateway.settings import Settings
from support.certificates import TestAuthority
from support.gateway_addresses import CLUSTER, OTHER_CLUSTER
from support.gateway_buffers import filled, pour
from support.gateway_disturbed import (
    BOTH,
    HOSTS,
    ONE,
    TWO,
    cut,
    echo,
    runtime,
)
from support.gateway_operator import Operator, pod_uid
from support.gateway_rig import until
from support.gateway_world import World

pytestmark = pytest.mark.long

# --- revocation ----------------------------------------------------------------------------------


def test_a_revoked_source_is_cut_at_once_and_nobody_else(upset: World) -> None:
    with (
        upset.client.open(ONE, "ok.test") as gone,
        upset.client.open(ONE, "other.test") as gone_too,
        upset.client.open(TWO, "ok.test") as stays,
    ):
        assert all(echo(each) for each in (gone, gone_too, stays))
        upset.operator.apply({TWO: "p"}, HOSTS)
        # It was acknowledged, so it holds: nothing is waited for upset.
        front = upset.pod.folder / "front" / "haproxy.sock"
        assert ONE not in runtime(str(front), "show sess")
        assert upset.client.status(ONE, "ok.test:443") == 403
        assert cut(gone)
        assert cut(gone_too)
        assert echo(stays)
    ended = [each.ended for each in upset.internet.seen]
    assert all(each.wait(10) for each in ended)


@pytest.mark.parametrize("way", ["tunnel", "by name"])
@pytest.mark.parametrize("asked", ["GET /48000000", "POST /stuck"], ids=["client", "server"])
def test_a_revoked_source_is_cut_whoever_does_not_take_what_is_under_way(
    upset: World, asked: str, way: str
) -> None:
    dial = upset.client.open if way == "tunnel" else upset.client.direct
    with dial(ONE, "ok.test") as gone, upset.client.open(TWO, "ok.test") as stays:
        gone.sendall(f"{asked} HTTP/1.1\r\nHost: ok.test\r\n\r\n".encode())
        if asked.startswith("POST"):
            pour(gone)
        filled(upset)
        upset.operator.apply({TWO: "p"}, HOSTS)
        front = upset.pod.folder / "front" / "haproxy.sock"
        assert ONE not in runtime(str(front), "show sess")
        assert echo(stays)


def test_who_hangs_up_while_it_is_cut_does_haproxy_no_harm(
    upset: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is over when haproxy is told once more to end it, of which the agent knows nothing yet."""
    path = upset.pod.folder / "front" / "haproxy.sock"
    front = Front(path)
    with upset.client.open(TWO, "ok.test") as stays:
        with contextlib.ExitStack() as kept:
            for _ in range(20):
                kept.enter_context(upset.client.open(ONE, "ok.test"))
            listed = [each for each in asyncio.run(front.sessions()) if each.address == ONE]
        until(lambda: ONE not in runtime(str(path), "show sess"), "their ends")
        stale, now = iter([listed, listed]), Front.sessions

        async def late(asked: Front) -> list[Session]:
            return next(stale, None) or await now(asked)

        monkeypatch.setattr(Front, "sessions", late)
        assert asyncio.run(front.cut(frozenset({ONE}))) == len(listed) == 20
        assert echo(stays)


def test_a_source_that_loses_a_host_is_cut(upset: World) -> None:
    with upset.client.open(ONE, "ok.test") as gone, upset.client.open(TWO, "ok.test") as stays:
        upset.operator.apply({ONE: "less", TWO: "p"}, {**HOSTS, "less": ("other.test",)})
        assert cut(gone)
        assert echo(stays)
        assert upset.client.status(ONE, "ok.test:443") == 403
        assert upset.client.fetch(ONE, "other.test").endswith(b"hello\n")


def test_another_pod_under_the_same_address_gets_no_connection_of_the_one_before(
    upset: World,
) -> None:
    with upset.client.open(ONE, "ok.test") as gone, upset.client.open(TWO, "ok.test") as stays:
        upset.operator.revision += 1
        upset.operator.stub.Apply(
            egress_pb2.ApplyRequest(
                term=upset.operator.term,
                revision=upset.operator.revision,
                policies=[egress_pb2.Policy(id="p", hosts=HOSTS["p"])],
                sources=[
                    egress_pb2.Source(address=ONE, policy_id="p", pod_uid="new"),
                    egress_pb2.Source(address=TWO, policy_id="p", pod_uid=pod_uid(TWO)),
                ],
            )
        )
        assert cut(gone)
        assert echo(stays)


def test_a_revoked_source_that_knows_no_proxy_is_cut_too(upset: World) -> None:
    with upset.client.direct(ONE, "ok.test") as gone, upset.client.direct(TWO, "ok.test") as stays:
        assert echo(gone)
        assert echo(stays)
        upset.operator.apply({TWO: "p"}, HOSTS)
        assert cut(gone)
        assert echo(stays)
        with pytest.raises((OSError, ssl.SSLError)):
            upset.client.direct(ONE, "ok.test")


def test_who_gains_keeps_what_is_open(upset: World) -> None:
    with upset.client.open(ONE, "ok.test") as stays:
        upset.operator.apply({ONE: "more", TWO: "p"}, {**HOSTS, "more": (*HOSTS["p"], "new.test")})
        assert echo(stays)


def test_grants_and_revocations_hold_when_they_are_acknowledged(upset: World) -> None:
    for _ in range(20):
        upset.operator.apply({}, HOSTS)
        assert upset.client.status(ONE, "ok.test:443") == 403
        upset.operator.apply(BOTH, HOSTS)
        assert upset.client.status(ONE, "ok.test:443") == 200


def test_no_connection_outlives_its_revocation_however_close_it_comes(upset: World) -> None:
    """Connections are opened while the right is given and taken, as fast as one source may."""
    stop = threading.Event()
    opened: list[ssl.SSLSocket] = []
    pause = 10 / Settings().connections_per_10s

    def hammer() -> None:
        while not stop.wait(pause):
            with contextlib.suppress(OSError, ssl.SSLError):
                opened.append(upset.client.open(ONE, "ok.test"))

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for _ in range(10):
            upset.operator.apply(BOTH, HOSTS)
            another(opened)
            upset.operator.apply({TWO: "p"}, HOSTS)
            before = list(opened)
            assert all(cut(each) for each in before)
    finally:
        stop.set()
        thread.join()
        for each in opened:
            each.close()


def another(opened: list[ssl.SSLSocket]) -> None:
    """Wait until one more connection is open."""
    count = len(opened)
    until(lambda: len(opened) > count, "a connection")


def test_a_range_that_is_denied_now_is_not_reached(upset: World) -> None:
    assert upset.client.fetch(ONE, "cluster.wild.test").endswith(b"hello\n")
    upset.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", "151.101.9.0/24"))
    assert upset.client.status(ONE, "cluster.wild.test:443") == 403
    with pytest.raises((OSError, ssl.SSLError)):
        upset.client.direct(ONE, "cluster.wild.test")
    upset.operator.apply(BOTH, HOSTS)
    until(lambda: upset.client.status(ONE, "cluster.wild.test:443") == 200, "squid to look again")


@pytest.mark.parametrize("way", ["open", "direct"])
def test_what_leads_to_a_range_that_is_denied_now_is_cut(upset: World, way: str) -> None:
    opened = upset.client.open if way == "open" else upset.client.direct
    with opened(ONE, "cluster.wild.test") as inside:
        assert echo(inside)
        upset.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", f"{OTHER_CLUSTER}/32"))
        assert cut(inside)
    upset.operator.apply(BOTH, HOSTS)


@pytest.mark.parametrize("denied", ["151.101.77.0/24", "10.3.0.0/16", "fd01::/16", "2001:4:1::/64"])
def test_a_range_that_nobody_uses_cuts_nobody(upset: World, denied: str) -> None:
    with upset.client.open(ONE, "ok.test") as one, upset.client.direct(TWO, "ok.test") as two:
        upset.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", denied))
        assert echo(one)
        assert echo(two)
    upset.operator.apply(BOTH, HOSTS)


def test_an_agent_that_ended_in_between_cuts_what_leads_inside_when_it_is_back(
    upset: World,
) -> None:
    """Whether the one before it came as far as cutting, nobody knows."""
    with upset.client.open(ONE, "cluster.wild.test") as inside:
        assert echo(inside)
        upset.pod.kill("agent")
        file = upset.pod.folder / "state" / "state.json"
        state = json.loads(file.read_bytes())
        state["denied"].append(f"{OTHER_CLUSTER}/32")
        file.write_text(json.dumps(state))
        upset.pod.start("agent")
        until(lambda: upset.http("/readyz") != "", "the agent")
        upset.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", f"{OTHER_CLUSTER}/32"))
        assert cut(inside)
    upset.operator.apply(BOTH, HOSTS)


# --- what the operator says ----------------------------------------------------------------------


def test_an_old_leader_is_refused_and_changes_nothing(upset: World) -> None:
    upset.operator.term = 2
    upset.operator.apply(BOTH, HOSTS, version=(2, 1))
    for version in ((1, 999_999), (2, 0), (2, 1)):
        with pytest.raises(grpc.RpcError) as caught:
            upset.operator.apply({}, {}, version=version)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    answer = upset.operator.apply(BOTH, HOSTS, version=(2, 1))
    assert (answer.term, answer.revision) == (2, 1)
    info = upset.operator.stub.Info(egress_pb2.InfoRequest())
    assert (info.term, info.revision, info.sources, info.policies) == (2, 1, 3, 1)
    assert upset.client.status(ONE, "ok.test:443") == 200


@pytest.mark.parametrize(
    ("uri", "foreign"),
    [("session:1", False), ("operator:other", False), ("operator:cloister", True)],
)
def test_nobody_but_the_operator_is_heard(upset: World, uri: str, foreign: bool) -> None:
    authority = TestAuthority() if foreign else upset.authority
    other = Operator(upset.space, authority, uri)
    try:
        for call in (
            lambda: other.stub.Apply(egress_pb2.ApplyRequest(term=9), timeout=3),
            lambda: other.stub.Info(egress_pb2.InfoRequest(), timeout=3),
            lambda: list(other.stub.Decisions(egress_pb2.DecisionsRequest(), timeout=3)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            expected = grpc.StatusCode.UNAVAILABLE if foreign else grpc.StatusCode.PERMISSION_DENIED
            assert caught.value.code() is expected
    finally:
        other.close()
    assert upset.client.status(ONE, "ok.test:443") == 200
