"""States that change, parts that die, and floods; each test has a gateway that it may disturb."""

import contextlib
import json
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import grpc
import pytest

from cloister_api.egress.v1 import egress_pb2
from support.certificates import TestAuthority
from support.gateway_rig import PARTS, until
from support.gateway_world import CLUSTER, OTHER_CLUSTER, SERVER, Operator, World, pod_uid, world

ONE, TWO, FLOODER = "10.90.0.11", "10.90.0.12", "10.90.0.20"
BOTH = {ONE: "p", TWO: "p", FLOODER: "p"}
HOSTS = {"p": ("ok.test", "other.test", "*.wild.test")}


@pytest.fixture(scope="module")
def one_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One gateway, put in order again before each test."""
    with world(tmp_path_factory.mktemp("gateway")) as made:
        made.internet.names.update(
            {"ok.test": [SERVER], "other.test": [SERVER], "cluster.wild.test": [OTHER_CLUSTER]}
        )
        yield made


@pytest.fixture
def here(one_world: World) -> World:
    """The gateway with two sandboxes, everything running."""
    for part in PARTS:
        if not one_world.pod.alive(part):
            one_world.pod.start(part)
    until(lambda: one_world.http("/readyz") != "", "the agent")
    one_world.operator.apply(BOTH, HOSTS)
    until(one_world.ready, "readiness")
    one_world.internet.forget()
    return one_world


def echo(made: ssl.SSLSocket, line: bytes = b"x\n") -> bool:
    """Whether a tunnel's far end answers."""
    made.sendall(line)
    return made.recv(100) == b"echo " + line


def cut(made: socket.socket) -> bool:
    """Whether a connection is over; waits for its end."""
    try:
        while made.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


# --- revocation ----------------------------------------------------------------------------------


def test_a_revoked_source_is_cut_at_once_and_nobody_else(here: World) -> None:
    with (
        here.client.open(ONE, "ok.test") as gone,
        here.client.open(ONE, "other.test") as gone_too,
        here.client.open(TWO, "ok.test") as stays,
    ):
        assert all(echo(each) for each in (gone, gone_too, stays))
        here.operator.apply({TWO: "p"}, HOSTS)
        # It was acknowledged, so it holds: nothing is waited for here.
        front = here.pod.folder / "front" / "haproxy.sock"
        assert ONE not in runtime(str(front), "show sess")
        assert here.client.status(ONE, "ok.test:443") == 403
        assert cut(gone)
        assert cut(gone_too)
        assert echo(stays)
    ended = [each.ended for each in here.internet.seen]
    assert all(each.wait(10) for each in ended)


def test_a_source_that_loses_a_host_is_cut(here: World) -> None:
    with here.client.open(ONE, "ok.test") as gone, here.client.open(TWO, "ok.test") as stays:
        here.operator.apply({ONE: "less", TWO: "p"}, {**HOSTS, "less": ("other.test",)})
        assert cut(gone)
        assert echo(stays)
        assert here.client.status(ONE, "ok.test:443") == 403
        assert here.client.fetch(ONE, "other.test").endswith(b"hello\n")


def test_another_pod_under_the_same_address_gets_no_connection_of_the_one_before(
    here: World,
) -> None:
    with here.client.open(ONE, "ok.test") as gone, here.client.open(TWO, "ok.test") as stays:
        here.operator.revision += 1
        here.operator.stub.Apply(
            egress_pb2.ApplyRequest(
                term=here.operator.term,
                revision=here.operator.revision,
                policies=[egress_pb2.Policy(id="p", hosts=HOSTS["p"])],
                sources=[
                    egress_pb2.Source(address=ONE, policy_id="p", pod_uid="new"),
                    egress_pb2.Source(address=TWO, policy_id="p", pod_uid=pod_uid(TWO)),
                ],
            )
        )
        assert cut(gone)
        assert echo(stays)


def test_a_revoked_source_that_knows_no_proxy_is_cut_too(here: World) -> None:
    with here.client.direct(ONE, "ok.test") as gone, here.client.direct(TWO, "ok.test") as stays:
        assert echo(gone)
        assert echo(stays)
        here.operator.apply({TWO: "p"}, HOSTS)
        assert cut(gone)
        assert echo(stays)
        with pytest.raises((OSError, ssl.SSLError)):
            here.client.direct(ONE, "ok.test")


def test_who_gains_keeps_what_is_open(here: World) -> None:
    with here.client.open(ONE, "ok.test") as stays:
        here.operator.apply({ONE: "more", TWO: "p"}, {**HOSTS, "more": (*HOSTS["p"], "new.test")})
        assert echo(stays)


def test_grants_and_revocations_hold_when_they_are_acknowledged(here: World) -> None:
    for _ in range(20):
        here.operator.apply({}, HOSTS)
        assert here.client.status(ONE, "ok.test:443") == 403
        here.operator.apply(BOTH, HOSTS)
        assert here.client.status(ONE, "ok.test:443") == 200


def test_no_connection_outlives_its_revocation_however_close_it_comes(here: World) -> None:
    """Connections are opened without pause while the right is given and taken."""
    stop = threading.Event()
    opened: list[ssl.SSLSocket] = []

    def hammer() -> None:
        while not stop.is_set():
            try:
                opened.append(here.client.open(ONE, "ok.test"))
            except (OSError, ssl.SSLError):
                continue

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for _ in range(10):
            here.operator.apply(BOTH, HOSTS)
            another(opened)
            here.operator.apply({TWO: "p"}, HOSTS)
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


def test_a_range_that_is_denied_now_is_not_reached(here: World) -> None:
    assert here.client.fetch(ONE, "cluster.wild.test").endswith(b"hello\n")
    here.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", "151.101.9.0/24"))
    assert here.client.status(ONE, "cluster.wild.test:443") == 403
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.direct(ONE, "cluster.wild.test")
    here.operator.apply(BOTH, HOSTS)
    until(lambda: here.client.status(ONE, "cluster.wild.test:443") == 200, "squid to look again")


@pytest.mark.parametrize("way", ["open", "direct"])
def test_what_leads_to_a_range_that_is_denied_now_is_cut(here: World, way: str) -> None:
    opened = here.client.open if way == "open" else here.client.direct
    with opened(ONE, "cluster.wild.test") as inside:
        assert echo(inside)
        here.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", f"{OTHER_CLUSTER}/32"))
        assert cut(inside)
    here.operator.apply(BOTH, HOSTS)


@pytest.mark.parametrize("denied", ["151.101.77.0/24", "10.3.0.0/16", "fd01::/16", "2001:4:1::/64"])
def test_a_range_that_nobody_uses_cuts_nobody(here: World, denied: str) -> None:
    with here.client.open(ONE, "ok.test") as one, here.client.direct(TWO, "ok.test") as two:
        here.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", denied))
        assert echo(one)
        assert echo(two)
    here.operator.apply(BOTH, HOSTS)


def test_an_agent_that_ended_in_between_cuts_what_leads_inside_when_it_is_back(here: World) -> None:
    """Whether the one before it came as far as cutting, nobody knows."""
    with here.client.open(ONE, "cluster.wild.test") as inside:
        assert echo(inside)
        here.pod.kill("agent")
        file = here.pod.folder / "state" / "state.json"
        state = json.loads(file.read_bytes())
        state["denied"].append(f"{OTHER_CLUSTER}/32")
        file.write_text(json.dumps(state))
        here.pod.start("agent")
        until(lambda: here.http("/readyz") != "", "the agent")
        here.operator.apply(BOTH, HOSTS, denied=(f"{CLUSTER}/32", f"{OTHER_CLUSTER}/32"))
        assert cut(inside)
    here.operator.apply(BOTH, HOSTS)


# --- what the operator says ----------------------------------------------------------------------


def refused(here: World, request: egress_pb2.ApplyRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        here.operator.stub.Apply(request, timeout=10)
    return caught.value


def test_an_old_leader_is_refused_and_changes_nothing(here: World) -> None:
    here.operator.term = 2
    here.operator.apply(BOTH, HOSTS, version=(2, 1))
    for version in ((1, 999_999), (2, 0), (2, 1)):
        with pytest.raises(grpc.RpcError) as caught:
            here.operator.apply({}, {}, version=version)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    answer = here.operator.apply(BOTH, HOSTS, version=(2, 1))
    assert (answer.term, answer.revision) == (2, 1)
    info = here.operator.stub.Info(egress_pb2.InfoRequest())
    assert (info.term, info.revision, info.sources, info.policies) == (2, 1, 3, 1)
    assert here.client.status(ONE, "ok.test:443") == 200


@pytest.mark.parametrize(
    ("uri", "foreign"),
    [("session:1", False), ("operator:other", False), ("operator:cloister", True)],
)
def test_nobody_but_the_operator_is_heard(here: World, uri: str, foreign: bool) -> None:
    authority = TestAuthority() if foreign else here.authority
    other = Operator(here.space, authority, uri)
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
    assert here.client.status(ONE, "ok.test:443") == 200


# --- parts that die ------------------------------------------------------------------------------


def test_the_state_outlives_the_agent_and_readiness_does_not(here: World) -> None:
    """Who runs goes on; and a former leader's state is still refused."""
    with here.client.open(ONE, "ok.test") as stays:
        held = here.operator.stub.Info(egress_pb2.InfoRequest())
        here.pod.kill("agent")
        assert echo(stays)
        assert here.client.status(ONE, "evil.test:443") == 403
        here.pod.start("agent")
        until(lambda: "has not told this gateway its rules" in here.http("/readyz"), "the agent")
        info = here.operator.stub.Info(egress_pb2.InfoRequest(), wait_for_ready=True, timeout=10)
        assert info.boot_id != held.boot_id
        assert (info.term, info.revision) == (held.term, held.revision)
        until(lambda: here.client.status(ONE, "ok.test:443") == 200, "names to be known again")
        assert echo(stays)
        with pytest.raises(grpc.RpcError) as caught:
            here.operator.apply({}, {}, version=(0, 1))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        here.operator.apply(BOTH, HOSTS)
        until(here.ready, "readiness")


@pytest.mark.parametrize("part", ["names", "sni"])
def test_a_killed_squid_comes_back_and_lets_nobody_pass_meanwhile(here: World, part: str) -> None:
    with here.client.open(ONE, "ok.test") as gone:
        (kid,) = here.pod.processes(part, "(squid-")
        os.kill(kid, signal.SIGKILL)
        assert cut(gone)

    def reached() -> bool:
        assert here.client.status(ONE, "evil.test:443") in (0, 403)
        return here.client.status(ONE, "ok.test:443") == 200

    until(reached, "squid to be back")
    assert here.pod.alive(part)
    assert {each.server_name for each in here.internet.seen} <= {"ok.test"}


@pytest.mark.parametrize("part", ["front", "names", "sni", "by-name"])
def test_a_killed_container_lets_nobody_pass(here: World, part: str) -> None:
    here.pod.kill(part)
    for host in ("ok.test", "evil.test"):
        try:
            with here.client.direct(ONE, host) as made:
                assert not echo(made)
        except (OSError, ssl.SSLError):
            pass
        try:
            assert part == "by-name" or here.client.status(ONE, f"{host}:443") != 200
        except OSError:
            continue
    until(lambda: part in here.http("/readyz"), "readiness to end")
    here.pod.start(part)
    until(here.ready, "readiness")
    assert here.client.fetch(ONE, "ok.test").endswith(b"hello\n")
    with here.client.direct(ONE, "ok.test") as made:
        assert echo(made)


def test_a_killed_helper_is_replaced_and_denies_meanwhile(here: World) -> None:
    for _ in range(3):
        for pid in here.pod.processes("names", "helper decide"):
            os.kill(pid, signal.SIGKILL)
        assert here.client.status(ONE, "evil.test:443") in (0, 403)
        until(lambda: here.client.status(ONE, "ok.test:443") == 200, "a new helper")
    assert here.internet.queries.count("evil.test") == 0


@pytest.mark.parametrize("garbage", [b"", b"{", b"\0" * 100_000, b'{"format": 1}', b"[]"])
def test_garbage_in_place_of_the_state_denies_everybody(here: World, garbage: bytes) -> None:
    file = here.pod.folder / "state" / "state.json"
    file.with_suffix(".x").write_bytes(garbage)
    file.with_suffix(".x").replace(file)
    assert here.client.status(ONE, "ok.test:443") == 403
    assert "no rules" in here.client.get(ONE, "http://ok.test/")
    assert here.internet.queries == []
    here.operator.apply(BOTH, HOSTS)
    assert here.client.status(ONE, "ok.test:443") == 200


def test_no_state_denies_everybody(here: World) -> None:
    (here.pod.folder / "state" / "state.json").unlink()
    assert here.client.status(ONE, "ok.test:443") == 403


# --- floods --------------------------------------------------------------------------------------


def test_a_flood_of_one_source_does_not_keep_another_from_working(here: World) -> None:
    """One opens connections without end, asks for what it may not and hangs; the other works."""
    stop = threading.Event()
    held: list[socket.socket] = []

    def flood() -> None:
        while not stop.is_set():
            try:
                held.append(here.client.connect(FLOODER))
                here.client.status(FLOODER, "evil.test:443")
            except OSError:
                continue

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for each in threads:
        each.start()
    try:
        until(lambda: refused_connections(here, FLOODER), "the bound", 60)
        for _ in range(20):
            assert here.client.fetch(TWO, "ok.test").endswith(b"hello\n")
        front = str(here.pod.folder / "front" / "haproxy.sock")
        assert runtime(front, "show sess").count(f"src={FLOODER}:") <= 256
    finally:
        stop.set()
        for each in threads:
            each.join()
        for connection in held:
            connection.close()


def test_a_flood_of_those_who_name_nobody_does_not_keep_others_from_working(here: World) -> None:
    """They open, say half a word and wait; those who open too many are refused and told of."""
    flooder = "10.90.0.44"
    here.operator.apply({TWO: "p", flooder: "p"}, HOSTS)
    feed = Feed(here, flooder)
    held = []
    try:
        for number in range(400):
            with contextlib.suppress(OSError):
                held.append(here.client.connect(flooder, (443, 3128)[number % 2]))
                held[-1].sendall(b"\x16\x03\x01\x02")
        for _ in range(10):
            with here.client.direct(TWO, "ok.test") as made:
                assert echo(made)
        # The bound is on what a source has at both ports together.
        front = str(here.pod.folder / "front" / "haproxy.sock")
        assert runtime(front, "show sess").count(f"src={flooder}:") <= 256
        key = (pod_uid(flooder), "", 0, "TooManyConnections")
        until(lambda: feed.counts.get(key, 0) > 0, "the refusals")
        told = 'cloister_gateway_decisions_total{reason="TooManyConnections",verdict="denied"}'
        assert told in here.http("/metrics")
    finally:
        for each in held:
            each.close()
        feed.close()


def refused_connections(here: World, source: str) -> bool:
    """Whether a source is at its bound."""
    try:
        return here.client.status(source, "evil.test:443") == 0
    except OSError:
        return True


# --- what is told --------------------------------------------------------------------------------


class Feed:
    """Adds up what the agent tells of some addresses."""

    def __init__(self, here: World, *addresses: str, cursor: int = 0, boot: str = "") -> None:
        self._addresses = addresses
        self._stream = here.operator.stub.Decisions(
            egress_pb2.DecisionsRequest(cursor=cursor, boot_id=boot)
        )
        self.counts: dict[tuple[str, str, int, str], int] = {}
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.lost = 0
        self.cursor = 0
        first = next(self._stream)
        self.boot = first.boot_id
        self._take(first)
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for message in self._stream:
                self._take(message)
        except grpc.RpcError:
            return

    def _take(self, message: egress_pb2.DecisionsResponse) -> None:
        self.cursor = message.cursor
        self.lost += message.lost
        for each in message.decisions:
            if each.address not in self._addresses:
                continue
            key = (each.pod_uid, each.host, each.port, each.reason)
            self.counts[key] = self.counts.get(key, 0) + each.count
            self.sent[each.host] = self.sent.get(each.host, 0) + each.bytes_sent
            self.received[each.host] = self.received.get(each.host, 0) + each.bytes_received
            assert each.allowed == (each.reason == "Allowed")
            assert abs(each.first.seconds - time.time()) < 600

    def close(self) -> None:
        self._stream.cancel()
        self._thread.join()


def test_what_was_decided_is_told_exactly(here: World) -> None:
    one, two, stranger = "10.90.0.31", "10.90.0.32", "10.90.0.33"
    here.operator.apply({one: "p", two: "p"}, HOSTS)
    feed = Feed(here, one, two, stranger)
    here.internet.names["private.wild.test"] = ["10.0.0.1"]
    for _ in range(7):
        here.client.fetch(one, "ok.test")
    with here.client.open(one, "ok.test") as upload, upload.makefile("rb") as answers:
        for _ in range(100):
            upload.sendall(b"x" * 1000 + b"\n")
            assert answers.readline().startswith(b"echo x")
    for _ in range(5):
        here.client.status(one, "evil.test:443")
    for _ in range(3):
        here.client.get(two, "http://evil.test/")
        here.client.get(two, "http://ok.test/100000")
    here.client.status(one, "ok.test:22")
    here.client.status(two, "10.0.0.1:443")
    here.client.status(two, "private.wild.test:443")
    here.client.status(stranger, "ok.test:443")
    with pytest.raises((OSError, ssl.SSLError)):
        here.client.fetch(two, "ok.test", "evil.test")
    uid, other = pod_uid(one), pod_uid(two)
    expected = {
        (uid, "ok.test", 443, "Allowed"): 8,
        (uid, "evil.test", 443, "HostNotAllowed"): 5,
        (other, "evil.test", 80, "HostNotAllowed"): 3,
        (other, "ok.test", 80, "Allowed"): 3,
        (uid, "ok.test", 22, "PortNotAllowed"): 1,
        (other, "", 443, "NotAName"): 1,
        (other, "private.wild.test", 443, "AddressDenied"): 1,
        ("", "ok.test", 443, "UnknownSource"): 1,
        (other, "ok.test", 443, "Allowed"): 1,
        (other, "ok.test", 443, "NameMismatch"): 1,
    }
    try:
        until(lambda: sum(feed.counts.values()) >= sum(expected.values()), "all decisions")
        assert {key: count for key, count in feed.counts.items() if count} == expected
        until(lambda: feed.received.get("ok.test", 0) > 400_000, "the bytes that came")
        until(lambda: feed.sent.get("ok.test", 0) > 100_000, "the bytes that went")
        # From a cursor on, nothing is told twice.
        again = Feed(here, one, two, stranger, cursor=feed.cursor, boot=feed.boot)
        again.close()
        assert not any(again.counts.values())
        assert feed.lost == 0
    finally:
        feed.close()


def test_what_tools_that_know_no_proxy_asked_for_is_told(here: World) -> None:
    one, stranger = "10.90.0.41", "10.90.0.43"
    here.operator.apply({one: "p"}, HOSTS)
    feed = Feed(here, one, stranger)
    try:
        with here.client.direct(one, "ok.test") as made:
            assert echo(made)
        for source, name in (
            (one, "evil.test"),
            (one, None),
            (stranger, "ok.test"),
            (stranger, None),
        ):
            with pytest.raises((OSError, ssl.SSLError)):
                here.client.direct(source, name)
        expected = {
            (pod_uid(one), "ok.test", 443, "Allowed"): 1,
            (pod_uid(one), "evil.test", 443, "HostNotAllowed"): 1,
            (pod_uid(one), "", 443, "NotAName"): 1,
            ("", "ok.test", 443, "UnknownSource"): 1,
            ("", "", 443, "UnknownSource"): 1,
        }
        until(lambda: sum(feed.counts.values()) >= len(expected), "all decisions")
        assert {key: count for key, count in feed.counts.items() if count} == expected
        until(lambda: feed.received.get("ok.test", 0) > 0, "the bytes")
    finally:
        feed.close()


def test_nobody_is_reported_as_somebody_else(here: World) -> None:
    """The second stage learns the source from a header that a sandbox may write, too."""
    one, two = "10.90.0.34", "10.90.0.35"
    here.operator.apply({one: "p", two: "p"}, HOSTS)
    feed = Feed(here, one, two)
    try:
        made = here.client.connect(one)
        head = "CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test\r\n"
        made.sendall(f"{head}X-Forwarded-For: {two}\r\nForwarded: for={two}\r\n\r\n".encode())
        assert b" 200 " in made.recv(4096)
        with pytest.raises((OSError, ssl.SSLError)), made:
            here.client.tls.wrap_socket(made, server_hostname="evil.test")
        key = (pod_uid(one), "ok.test", 443, "NameMismatch")
        until(lambda: feed.counts.get(key, 0) == 1, "the mismatch")
        assert {uid for uid, *_ in feed.counts} == {pod_uid(one)}
    finally:
        feed.close()


def test_decisions_wait_for_an_agent_that_is_away(here: World) -> None:
    here.pod.kill("agent")
    for _ in range(6):
        assert here.client.status(ONE, "evil.test:443") == 403
    here.pod.start("agent")
    until(lambda: here.http("/readyz") != "", "the agent")
    here.operator.stub.Info(egress_pb2.InfoRequest(), wait_for_ready=True, timeout=10)
    feed = Feed(here, ONE)
    try:
        key = (pod_uid(ONE), "evil.test", 443, "HostNotAllowed")
        until(lambda: feed.counts.get(key, 0) >= 6, "the decisions of meanwhile")
    finally:
        feed.close()


def runtime(path: str, command: str) -> str:
    """What haproxy answers."""
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(path)
        made.sendall(command.encode() + b"\n")
        parts = []
        while part := made.recv(65536):
            parts.append(part)
        return b"".join(parts).decode()
