"""Relays of the Sessions API: bytes both ways, whose they may be, and what bounds them."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from unittest import mock

import grpc
import pytest

from cloister_api.sessions.v1 import sessions_pb2
from cloister_operator.sessions_api import guard as guards
from cloister_operator.sessions_api import relay as relays
from cloister_operator.sessions_api import servicer
from cloister_operator.sessions_api.auth import Auth
from support.sandbox_server import free_port
from support.sessions_parts import (
    ALICE,
    BOB,
    CAROL,
    NS,
    Api,
    Clock,
    FakeReviewer,
    made,
    serving,
    unpack,
)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
FIRST = sessions_pb2.RelayRequest(namespace=NS, name="s1")


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving(max_relays=2) as served:
        served.backend.sessions["s1"] = made()
        yield served


@contextlib.asynccontextmanager
async def sandbox(api: Api, handler: Handler) -> AsyncIterator[asyncio.Server]:
    """Stands for the exec server of session s1."""
    busy: list[asyncio.Future[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done = asyncio.get_running_loop().create_future()
        busy.append(done)
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            done.set_result(None)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    api.backend.address = (host, port)
    async with server:
        yield server
        await asyncio.wait_for(asyncio.gather(*busy), 10)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


def opened(api: Api, token: str | None = ALICE) -> Any:
    metadata = [("authorization", f"Bearer {token}")] if token else []
    return api.stub.Relay(metadata=metadata)


async def connected(api: Api, token: str = ALICE) -> Any:
    """A relay that stands."""
    call = opened(api, token)
    await call.write(FIRST)
    assert await call.read() == sessions_pb2.RelayResponse()
    return call


async def failed(call: Any) -> Any:
    async def to_its_end() -> None:
        while await call.read() is not grpc.aio.EOF:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_its_end()
    return unpack(caught.value)


async def refused(api: Api, first: sessions_pb2.RelayRequest = FIRST, token: Any = ALICE) -> Any:
    call = opened(api, token)
    await call.write(first)
    return await failed(call)


async def test_bytes_go_both_ways_in_their_order(api: Api) -> None:
    content = bytes(range(256)) * 4096
    async with sandbox(api, echo):
        call = await connected(api)

        async def send() -> None:
            for start in range(0, len(content), relays.MAX_DATA):
                part = content[start : start + relays.MAX_DATA]
                await call.write(sessions_pb2.RelayRequest(data=part))

        sending = asyncio.create_task(send())
        found = b""
        while len(found) < len(content):
            found += (await call.read()).data
        await sending
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    assert found == content


async def test_the_first_request_may_carry_bytes(api: Api) -> None:
    async with sandbox(api, echo):
        call = opened(api)
        await call.write(sessions_pb2.RelayRequest(namespace=NS, name="s1", data=b"hello"))
        assert (await call.read()).data == b""
        assert (await call.read()).data == b"hello"
        call.cancel()


async def test_the_sandboxs_end_ends_the_call(api: Api) -> None:
    async def bye(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.close()

    async with sandbox(api, bye):
        call = await connected(api)
        assert (await call.read()).data == b"bye"
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_the_callers_end_ends_the_connection(api: Api) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read()
        ended.set()
        writer.close()

    async with sandbox(api, wait):
        call = await connected(api)
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)


async def test_who_may_not_have_a_session_may_not_have_a_relay(api: Api) -> None:
    assert (await refused(api, token=None)).code is grpc.StatusCode.UNAUTHENTICATED
    assert (await refused(api, token="nobody's")).code is grpc.StatusCode.UNAUTHENTICATED
    assert (await refused(api, token=BOB)).code is grpc.StatusCode.PERMISSION_DENIED
    for right in (("get", ""), ("create", "exec")):
        api.reviewer.missing, api.clock.now = {right}, api.clock.now + 60
        assert (await refused(api)).code is grpc.StatusCode.PERMISSION_DENIED
    # Asked for that session in its namespace.
    assert ("alice", "create", "sessions", "exec", NS, "s1") in api.reviewer.access_reviews


class _Refusal(Exception):
    """How gRPC ends a call that was aborted."""


async def test_a_refusal_lets_the_caller_say_first_what_it_wants() -> None:
    """A call that ends while its caller writes fails with INTERNAL there, whatever the reason."""
    happened: list[Any] = []

    async def requests() -> AsyncIterator[sessions_pb2.RelayRequest]:
        await asyncio.sleep(0)
        happened.append("heard")
        yield FIRST

    async def abort(code: grpc.StatusCode, _message: str) -> None:
        happened.append(code)
        raise _Refusal

    context = mock.Mock(abort=abort)
    context.invocation_metadata.return_value = [("authorization", "Bearer nobody's")]
    context.peer.return_value = "ipv4:10.0.0.9:1234"
    guard = guards.Guard(Auth(FakeReviewer(), Clock()))

    async def inner(_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(mock.Mock())

    details = mock.Mock(method=f"{guards.SERVICE}Relay")
    handler: Any = await guard.intercept_service(inner, details)
    with pytest.raises(_Refusal):
        await anext(handler.stream_stream(requests(), context))
    assert happened == ["heard", grpc.StatusCode.UNAUTHENTICATED]


async def test_who_is_refused_and_says_nothing_is_not_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "HEARD_SECONDS", 0.05)
    assert (await failed(opened(api, None))).code is grpc.StatusCode.UNAUTHENTICATED
    ended = opened(api, None)
    await ended.done_writing()
    assert (await failed(ended)).code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_relay_ends_when_the_right_is_taken_away(api: Api) -> None:
    async with sandbox(api, echo):
        call = await connected(api)
        api.reviewer.missing, api.clock.now = {("create", "exec")}, api.clock.now + 60
        assert (await failed(call)).code is grpc.StatusCode.PERMISSION_DENIED


async def test_what_names_no_session_is_refused(api: Api) -> None:
    wrong = await refused(api, sessions_pb2.RelayRequest(namespace="A/B", name="../s1"))
    assert wrong.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(wrong.fields) == {"namespace", "name"}
    missing = await refused(api, sessions_pb2.RelayRequest(namespace=NS, name="other"))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_a_session_without_a_sandbox_says_so(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicer, "_MIRROR_SECONDS", 0.01)
    api.backend.sessions["s1"] = made(phase="Suspended")
    assert (await refused(api)).code is grpc.StatusCode.FAILED_PRECONDITION
    api.backend.sessions["s1"] = made()
    for address in (None, ("127.0.0.1", free_port())):
        api.backend.address = address
        gone = await refused(api)
        assert (gone.code, gone.reason) == (grpc.StatusCode.UNAVAILABLE, "SANDBOX_UNREACHABLE")
        assert gone.retry_seconds


async def test_a_node_that_vanishes_ends_its_relays(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel asks for signs of life: nobody else would find out in less than hours."""
    made: list[socket.socket] = []
    connect = asyncio.open_connection

    async def connecting(*args: Any, **given: Any) -> Any:
        reader, writer = await connect(*args, **given)
        made.append(writer.get_extra_info("socket"))
        return reader, writer

    monkeypatch.setattr(asyncio, "open_connection", connecting)
    async with sandbox(api, echo):
        call = await connected(api)
        (opened,) = made
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, every, count = (
            opened.getsockopt(socket.IPPROTO_TCP, each)
            for each in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + every * count <= 90
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 90_000
        call.cancel()


async def test_who_says_nothing_is_not_waited_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "FIRST_SECONDS", 0.05)
    assert (await failed(opened(api))).reason == "NO_REQUEST"
    ended = opened(api)
    await ended.done_writing()
    assert (await failed(ended)).reason == "NO_REQUEST"


async def test_relays_are_bounded_for_each_caller_and_for_all(api: Api) -> None:
    async with sandbox(api, echo):
        first = await connected(api, ALICE)
        assert (await refused(api)).reason == "TOO_MANY_CALLS"
        second = await connected(api, CAROL)
        assert (await refused(api)).reason == "TOO_MANY_CALLS"
        for each in (first, second):
            each.cancel()
        third = None
        async with asyncio.timeout(10):
            # The server learns of an end a little later.
            while third is None:
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    third = await connected(api)
        third.cancel()


async def test_the_service_accounts_of_a_namespace_share_what_one_caller_has(api: Api) -> None:
    for each in ("one", "two"):
        api.reviewer.valid[each] = f"system:serviceaccount:team-a:{each}"
        api.reviewer.allowed.add(api.reviewer.valid[each])
    async with sandbox(api, echo):
        first = await connected(api, "one")
        assert (await refused(api, token="two")).reason == "TOO_MANY_CALLS"
        second = await connected(api, ALICE)
        for call in (first, second):
            call.cancel()


async def test_a_message_that_is_too_large_ends_the_relay(api: Api) -> None:
    async with sandbox(api, echo):
        call = await connected(api)
        await call.write(sessions_pb2.RelayRequest(data=bytes(relays.MAX_DATA + 1)))
        wrong = await failed(call)
        assert (wrong.code, set(wrong.fields)) == (grpc.StatusCode.INVALID_ARGUMENT, {"data"})


async def test_a_slow_reader_holds_the_sandbox_up_and_no_memory(api: Api) -> None:
    """What nobody takes stays with the sandbox: its writes wait."""
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while sent < 256 * 2**20:
                writer.write(bytes(2**20))
                await writer.drain()
                sent += 2**20
        writer.close()

    async with sandbox(api, flood):
        call = await connected(api)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 64 * 2**20
        call.cancel()
