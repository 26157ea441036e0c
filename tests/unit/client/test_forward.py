"""Forwarded ports: bytes both ways, ends, and what goes wrong."""

import asyncio
import contextlib
from typing import Any

import pytest

import cloister
from cloister import _connection, _sessions_api
from cloister._forward import Forward
from support.certificates import TestAuthority
from support.cluster import wait_for
from support.fake_kube import FakeKube
from support.fake_sessions import FakeSessions


def test_everything_works_from_outside(
    outside: cloister.Client, kube: FakeKube, sessions: FakeSessions
) -> None:
    sessions.endpoint = "192.0.2.1:7443"
    with outside.create_session("env") as session:
        assert session.bash("echo hello").text == "hello"
        content = bytes(range(256)) * 60_000
        session.write_bytes("big", content)
        assert session.read_bytes("big") == content
    # Transfers have a connection of their own.
    assert sessions.relayed == [f"cloister-sandboxes/{session.name}"] * 2
    # Nothing is forwarded to the sandbox itself: who may do that may do more.
    assert kube.forwarded == ["cloister-operator-0:8443"]


def test_reach(outside: cloister.Client, client: cloister.Client, sessions: FakeSessions) -> None:
    with outside.create_session("env") as session, outside.reach(session) as address:
        assert address.startswith("127.0.0.1:")
        assert address != sessions.endpoint
    with client.create_session("env") as session, session.reach() as address:
        assert address == sessions.endpoint


def test_what_the_operator_says_of_a_sandbox_is_reported(
    outside: cloister.Client, sessions: FakeSessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    with outside.create_session("env") as session:
        sessions.reachable = False
        with monkeypatch.context() as short:
            short.setattr(_connection, "RETRY_SECONDS", 1.0)
            with pytest.raises(cloister.UnavailableError, match="sandbox does not answer"):
                session.bash("true")
        sessions.reachable = True
        assert session.bash("true").exit_code == 0


def test_what_the_error_channel_says_is_reported(
    outside: cloister.Client, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sessions_api, "_RETRY_SECONDS", 0.0)
    kube.forward_error = "connection refused inside the pod"
    with pytest.raises(cloister.UnavailableError, match="refused inside the pod"):
        outside.list_sessions()
    assert outside.list_sessions() == []


def test_no_operator_is_reported(
    outside: cloister.Client, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sessions_api, "_RETRY_SECONDS", 0.0)
    kube.operator_ready = False
    with pytest.raises(cloister.UnavailableError, match="no pod of Cloister's operator is ready"):
        outside.list_sessions()


def test_closing_ends_open_connections(
    outside: cloister.Client, kube: FakeKube, sessions: FakeSessions
) -> None:
    session = outside.create_session("env")
    assert session.bash("true").exit_code == 0
    assert (kube.open_forwards, sessions.open_relays) == (1, 1)
    outside.close()
    wait_for("the end of the one", lambda: True if kube.open_forwards == 0 else None, 10)
    wait_for("and of the other", lambda: True if sessions.open_relays == 0 else None, 10)


async def test_who_connects_just_before_the_end_is_hung_up_on() -> None:
    async def nobody() -> Any:
        raise AssertionError("it is not asked for")

    accepted: list[asyncio.StreamWriter] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        forward._accept(reader, writer)
        ending.append(asyncio.create_task(forward.close()))
        # Before its first step.
        for each in forward._bridges:
            each.cancel()

    ending: list[asyncio.Task[None]] = []
    forward = Forward(nobody, "nobody")
    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection(host, port)
        assert await reader.read() == b""
        await ending[0]
        writer.close()
    assert [each.is_closing() for each in accepted] == [True]


async def test_who_is_accepted_at_the_end_is_hung_up_on() -> None:
    async def nobody() -> Any:
        raise AssertionError("it is not asked for")

    forward = Forward(nobody, "nobody")
    await forward.close()
    async with await asyncio.start_server(forward._accept, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()[:2]
        reader, writer = await asyncio.open_connection(host, port)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert forward._bridges == set()


def test_a_ca_that_was_replaced_is_looked_up_again(
    client: cloister.Client, kube: FakeKube, sessions: FakeSessions
) -> None:
    """Who read whom to trust before the CA was rotated fails no call for it."""
    kube.client_config = {**sessions.client_config, "ca.crt": TestAuthority().pem.decode()}
    kube.next_config = sessions.client_config
    assert client.list_sessions() == []
