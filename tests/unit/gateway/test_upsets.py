"""Parts that die, floods, and what is told; each test has a gateway that it may disturb."""

import contextlib
import os
import signal
import socket
import ssl
import threading
import time

import grpc
import pytest

from cloister_api.egress.v1 import egress_pb2
from support.gateway_disturbed import (
    BOTH,
    FLOODER,
    HOSTS,
    ONE,
    TWO,
    cut,
    echo,
    runtime,
)
from support.gateway_operator import pod_uid
from support.gateway_rig import until
from support.gateway_world import World

pytestmark = pytest.mark.long

# --- parts that die ------------------------------------------------------------------------------


def test_the_state_outlives_the_agent_and_readiness_does_not(upset: World) -> None:
    """Who runs goes on; and a former leader's state is still refused."""
    with upset.client.open(ONE, "ok.test") as stays:
        held = upset.operator.stub.Info(egress_pb2.InfoRequest())
        upset.pod.kill("agent")
        assert echo(stays)
        assert upset.client.status(ONE, "evil.test:443") == 403
        upset.pod.start("agent")
        until(lambda: "has not told this gateway its rules" in upset.http("/readyz"), "the agent")
        info = upset.operator.stub.Info(egress_pb2.InfoRequest(), wait_for_ready=True, timeout=10)
        assert info.boot_id != held.boot_id
        assert (info.term, info.revision) == (held.term, held.revision)
        until(lambda: upset.client.status(ONE, "ok.test:443") == 200, "names to be known again")
        assert echo(stays)
        with pytest.raises(grpc.RpcError) as caught:
            upset.operator.apply({}, {}, version=(0, 1))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        upset.operator.apply(BOTH, HOSTS)
        until(upset.ready, "readiness")


@pytest.mark.parametrize("part", ["names", "sni"])
def test_a_killed_squid_comes_back_and_lets_nobody_pass_meanwhile(upset: World, part: str) -> None:
    with upset.client.open(ONE, "ok.test") as gone:
        (kid,) = upset.pod.processes(part, "(squid-")
        os.kill(kid, signal.SIGKILL)
        assert cut(gone)

    def reached() -> bool:
        assert upset.client.status(ONE, "evil.test:443") in (0, 403)
        return upset.client.status(ONE, "ok.test:443") == 200

    until(reached, "squid to be back")
    assert upset.pod.alive(part)
    assert {each.server_name for each in upset.internet.seen} <= {"ok.test"}


@pytest.mark.parametrize("part", ["front", "names", "sni", "by-name"])
def test_a_killed_container_lets_nobody_pass(upset: World, part: str) -> None:
    upset.pod.kill(part)
    for host in ("ok.test", "evil.test"):
        try:
            with upset.client.direct(ONE, host) as made:
                assert not echo(made)
        except (OSError, ssl.SSLError):
            pass
        try:
            assert part == "by-name" or upset.client.status(ONE, f"{host}:443") != 200
        except OSError:
            continue
    until(lambda: part in upset.http("/readyz"), "readiness to end")
    upset.pod.start(part)
    until(upset.ready, "readiness")
    assert upset.client.fetch(ONE, "ok.test").endswith(b"hello\n")
    with upset.client.direct(ONE, "ok.test") as made:
        assert echo(made)


def test_a_killed_helper_is_replaced_and_denies_meanwhile(upset: World) -> None:
    for _ in range(3):
        for pid in upset.pod.processes("names", "helper decide"):
            os.kill(pid, signal.SIGKILL)
        assert upset.client.status(ONE, "evil.test:443") in (0, 403)
        until(lambda: upset.client.status(ONE, "ok.test:443") == 200, "a new helper")
    assert upset.internet.queries.count("evil.test") == 0


@pytest.mark.parametrize("garbage", [b"", b"{", b"\0" * 100_000, b'{"format": 1}', b"[]"])
def test_garbage_in_place_of_the_state_denies_everybody(upset: World, garbage: bytes) -> None:
    file = upset.pod.folder / "state" / "state.json"
    file.with_suffix(".x").write_bytes(garbage)
    file.with_suffix(".x").replace(file)
    assert upset.client.status(ONE, "ok.test:443") == 403
    assert "no rules" in upset.client.get(ONE, "http://ok.test/")
    assert upset.internet.queries == []
    upset.operator.apply(BOTH, HOSTS)
    assert upset.client.status(ONE, "ok.test:443") == 200


def test_no_state_denies_everybody(upset: World) -> None:
    (upset.pod.folder / "state" / "state.json").unlink()
    assert upset.client.status(ONE, "ok.test:443") == 403


# --- floods --------------------------------------------------------------------------------------


def test_a_flood_of_one_source_does_not_keep_another_from_working(upset: World) -> None:
    """One opens connections without end, asks for what it may not and hangs; the other works."""
    stop = threading.Event()
    held: list[socket.socket] = []

    def flood() -> None:
        while not stop.is_set():
            try:
                held.append(upset.client.connect(FLOODER))
                upset.client.status(FLOODER, "evil.test:443")
            except OSError:
                continue

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for each in threads:
        each.start()
    try:
        until(lambda: refused_connections(upset, FLOODER), "the bound", 60)
        for _ in range(20):
            assert upset.client.fetch(TWO, "ok.test").endswith(b"hello\n")
        front = str(upset.pod.folder / "front" / "haproxy.sock")
        assert runtime(front, "show sess").count(f"src={FLOODER}:") <= 256
    finally:
        stop.set()
        for each in threads:
            each.join()
        for connection in held:
            connection.close()


def test_a_flood_of_those_who_name_nobody_does_not_keep_others_from_working(upset: World) -> None:
    """They open, say half a word and wait; those who open too many are refused and told of."""
    flooder = "10.90.0.44"
    upset.operator.apply({TWO: "p", flooder: "p"}, HOSTS)
    feed = Feed(upset, flooder)
    held = []
    try:
        for number in range(400):
            with contextlib.suppress(OSError):
                held.append(upset.client.connect(flooder, (443, 3128)[number % 2]))
                held[-1].sendall(b"\x16\x03\x01\x02")
        for _ in range(10):
            with upset.client.direct(TWO, "ok.test") as made:
                assert echo(made)
        # The bound is on what a source has at both ports together.
        front = str(upset.pod.folder / "front" / "haproxy.sock")
        assert runtime(front, "show sess").count(f"src={flooder}:") <= 256
        key = (pod_uid(flooder), "", 0, "TooManyConnections")
        until(lambda: feed.counts.get(key, 0) > 0, "the refusals")
        told = 'cloister_gateway_decisions_total{reason="TooManyConnections",verdict="denied"}'
        assert told in upset.http("/metrics")
    finally:
        for each in held:
            each.close()
        feed.close()


def refused_connections(upset: World, source: str) -> bool:
    """Whether a source is at its bound."""
    try:
        return upset.client.status(source, "evil.test:443") == 0
    except OSError:
        return True


# --- what is told --------------------------------------------------------------------------------


class Feed:
    """Adds up what the agent tells of some addresses."""

    def __init__(self, upset: World, *addresses: str, cursor: int = 0, boot: str = "") -> None:
        self._addresses = addresses
        self._stream = upset.operator.stub.Decisions(
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


def test_what_was_decided_is_told_exactly(upset: World) -> None:
    one, two, stranger = "10.90.0.31", "10.90.0.32", "10.90.0.33"
    upset.operator.apply({one: "p", two: "p"}, HOSTS)
    feed = Feed(upset, one, two, stranger)
    upset.internet.names["private.wild.test"] = ["10.0.0.1"]
    for _ in range(7):
        upset.client.fetch(one, "ok.test")
    with upset.client.open(one, "ok.test") as upload, upload.makefile("rb") as answers:
        for _ in range(100):
            upload.sendall(b"x" * 1000 + b"\n")
            assert answers.readline().startswith(b"echo x")
    for _ in range(5):
        upset.client.status(one, "evil.test:443")
    for _ in range(3):
        upset.client.get(two, "http://evil.test/")
        upset.client.get(two, "http://ok.test/100000")
    upset.client.status(one, "ok.test:22")
    upset.client.status(two, "10.0.0.1:443")
    upset.client.status(two, "private.wild.test:443")
    upset.client.status(stranger, "ok.test:443")
    with pytest.raises((OSError, ssl.SSLError)):
        upset.client.fetch(two, "ok.test", "evil.test")
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
        again = Feed(upset, one, two, stranger, cursor=feed.cursor, boot=feed.boot)
        again.close()
        assert not any(again.counts.values())
        assert feed.lost == 0
    finally:
        feed.close()


def test_what_tools_that_know_no_proxy_asked_for_is_told(upset: World) -> None:
    one, stranger = "10.90.0.41", "10.90.0.43"
    upset.operator.apply({one: "p"}, HOSTS)
    feed = Feed(upset, one, stranger)
    try:
        with upset.client.direct(one, "ok.test") as made:
            assert echo(made)
        for source, name in (
            (one, "evil.test"),
            (one, None),
            (stranger, "ok.test"),
            (stranger, None),
        ):
            with pytest.raises((OSError, ssl.SSLError)):
                upset.client.direct(source, name)
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


def test_nobody_is_reported_as_somebody_else(upset: World) -> None:
    """The second stage learns the source from a header that a sandbox may write, too."""
    one, two = "10.90.0.34", "10.90.0.35"
    upset.operator.apply({one: "p", two: "p"}, HOSTS)
    feed = Feed(upset, one, two)
    try:
        made = upset.client.connect(one)
        head = "CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test\r\n"
        made.sendall(f"{head}X-Forwarded-For: {two}\r\nForwarded: for={two}\r\n\r\n".encode())
        assert b" 200 " in made.recv(4096)
        with pytest.raises((OSError, ssl.SSLError)), made:
            upset.client.tls.wrap_socket(made, server_hostname="evil.test")
        key = (pod_uid(one), "ok.test", 443, "NameMismatch")
        until(lambda: feed.counts.get(key, 0) == 1, "the mismatch")
        assert {uid for uid, *_ in feed.counts} == {pod_uid(one)}
    finally:
        feed.close()


def test_decisions_wait_for_an_agent_that_is_away(upset: World) -> None:
    upset.pod.kill("agent")
    for _ in range(6):
        assert upset.client.status(ONE, "evil.test:443") == 403
    upset.pod.start("agent")
    until(lambda: upset.http("/readyz") != "", "the agent")
    upset.operator.stub.Info(egress_pb2.InfoRequest(), wait_for_ready=True, timeout=10)
    feed = Feed(upset, ONE)
    try:
        key = (pod_uid(ONE), "evil.test", 443, "HostNotAllowed")
        until(lambda: feed.counts.get(key, 0) >= 6, "the decisions of meanwhile")
    finally:
        feed.close()
