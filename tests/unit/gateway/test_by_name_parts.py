"""What makes tunnels of TLS by its name, alone: its reader of first messages, and its bounds."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_gateway import byname, places
from cloister_gateway.byname import ByName
from cloister_gateway.hello import NotHello, server_name
from cloister_gateway.helper import Rules
from cloister_gateway.reports import Reporter
from cloister_gateway.settings import Settings
from cloister_gateway.splice import Splice
from support.client_hello import hello

OK = hello((0, "ok.test"))
HEAD = b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 443\r\n"

# --- first messages ------------------------------------------------------------------------------


def test_the_name_is_found_as_it_was_written() -> None:
    assert server_name(OK) == "ok.test"
    assert server_name(OK + b"more") == "ok.test"
    assert server_name(hello((0, "OK.Test."))) == "OK.Test."
    assert server_name(hello((0, "a b\n"))) == "a b\n"


def test_every_beginning_waits_for_more() -> None:
    assert [server_name(OK[:at]) for at in range(len(OK))] == [None] * len(OK)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=14))
def test_records_are_put_together(sizes: list[int]) -> None:
    body, parts = OK[5:], b""
    for size in [*sizes, len(body)]:
        part, body = body[:size], body[size:]
        if part:
            parts += OK[:3] + len(part).to_bytes(2, "big") + part
    assert server_name(parts) == "ok.test"


@given(st.binary(max_size=300))
def test_garbage_has_no_name(data: bytes) -> None:
    with contextlib.suppress(NotHello):
        assert server_name(data) is None


@given(st.integers(0, len(OK) - 1), st.integers(0, 255))
def test_a_changed_byte_breaks_nothing(at: int, value: int) -> None:
    with contextlib.suppress(NotHello):
        found = server_name(OK[:at] + bytes([value]) + OK[at + 1 :])
        assert found is None or isinstance(found, str)


@pytest.mark.parametrize(
    "data",
    [
        *(b"G", b"\x16\x02", b"\x17\x03\x03", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\xff\xff"),
        *(b"\x16\x03\x01\x00\x01\x02", b"\x16\x03\x01\x00\x04\x01\x00\x40\x00"),
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        hello((0, "\xe9.test")),
        b"".join(b"\x16\x03\x01\0\1" + OK[5 + at : 6 + at] for at in range(17)),
    ],
)
def test_what_can_be_no_first_message_is_not_waited_for(data: bytes) -> None:
    with pytest.raises(NotHello):
        server_name(data)


# --- bounds --------------------------------------------------------------------------------------


class Squid:
    """Answers CONNECTs, and keeps what it heard."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.heard: list[bytes] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(self.answer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def serving(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n",
    most: int = 100,
) -> AsyncIterator[tuple[int, Squid]]:
    """The port of a `by-name` before such a squid."""
    squid = Squid(answer)
    reporter = Reporter(folder / "none", time.monotonic)
    shim = ByName(Settings(max_connections=most), Rules(folder / "none"), reporter)
    with socket.create_server((places.LOOPBACK, 0)) as listener:
        listener.setblocking(False)
        async with await asyncio.start_server(squid.handle, places.LOOPBACK, 0) as names:
            port = names.sockets[0].getsockname()[1]
            monkeypatch.setattr(places, "NAMES_PORT", port)
            task = asyncio.create_task(shim.serve(listener))
            try:
                yield listener.getsockname()[1], squid
            finally:
                task.cancel()
                await shim.close()


async def dial(
    port: int, said: bytes = HEAD + OK
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(places.LOOPBACK, port)
    writer.write(said)
    return reader, writer


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True


async def test_squid_is_asked_as_the_source_would_have_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch) as (port, squid):
        reader, writer = await dial(port)
        assert await reader.readexactly(len(OK)) == OK
        writer.write_eof()
        assert await ended(reader)
        writer.close()
    assert squid.heard == [HEAD + b"CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n\r\n"]


@pytest.mark.parametrize(
    "answer",
    [
        *(b"HTTP/1.1 403 Forbidden\r\n\r\nno", b"HTTP/1.1 503 x 200 \r\n\r\n", b"nonsense\r\n\r\n"),
        b"x" * 100_000,
    ],
)
async def test_what_squid_refuses_is_ended_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    async with serving(tmp_path, monkeypatch, answer) as (port, _):
        reader, writer = await dial(port)
        assert await ended(reader)
        writer.close()


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"PROXY", HEAD, HEAD + OK[:-1], HEAD + b"\x16", b"x" * 50),
        b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 443",
    ],
)
async def test_who_says_too_little_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(byname, "HELLO_SECONDS", 0.05)
    async with serving(tmp_path, monkeypatch) as (port, squid):
        reader, writer = await dial(port, said)
        assert await ended(reader)
        writer.close()
    assert squid.heard == []


@pytest.mark.parametrize(
    "head",
    [
        *(b"PROXY UNKNOWN\r\n", b"PROXY TCP4 10.0.0.1 10.0.0.2 4000\r\n", b"\r\n", OK),
        b"PROXY TCP4 a\rb 10.0.0.2 4000 443\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b" 10.0.0.2 4000 443\r\n",
    ],
)
async def test_a_head_that_haproxy_does_not_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    async with serving(tmp_path, monkeypatch) as (port, squid):
        reader, writer = await dial(port, head + OK)
        assert await ended(reader)
        writer.close()
    assert squid.heard == []


async def test_a_squid_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byname, "ANSWER_SECONDS", 0.05)
    async with serving(tmp_path, monkeypatch, b"HTTP/1.1 200") as (port, _):
        reader, writer = await dial(port)
        assert await ended(reader)
        writer.close()


async def test_no_more_connections_are_taken_than_there_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, monkeypatch, most=2) as (port, squid):
        made = [await dial(port) for _ in range(3)]
        for reader, _ in made[:2]:
            assert await reader.readexactly(len(OK)) == OK
        assert len(squid.heard) == 2
        # The third gets its turn.
        made[0][1].close()
        assert await made[2][0].readexactly(len(OK)) == OK
        for _, writer in made:
            writer.close()


def pair() -> tuple[socket.socket, socket.socket]:
    both = socket.socketpair()
    for each in both:
        each.setblocking(False)
    return both


async def test_a_connection_on_which_nothing_moves_ends() -> None:
    (one, near), (far, other) = pair(), pair()
    with one, near, far, other:
        await Splice(near, far).run(b"first", b"", idle=0.05)
        assert other.recv(100) == b"first"


async def test_one_end_may_be_done_before_the_other() -> None:
    loop = asyncio.get_running_loop()
    (one, near), (far, other) = pair(), pair()
    with one, near, far, other:
        task = asyncio.create_task(Splice(near, far).run(b"", b"", idle=60))
        await loop.sock_sendall(one, b"question")
        one.shutdown(socket.SHUT_WR)
        heard = b""
        while part := await loop.sock_recv(other, 100):
            heard += part
        assert heard == b"question"
        await loop.sock_sendall(other, b"answer")
        other.close()
        assert await loop.sock_recv(one, 100) == b"answer"
        assert await loop.sock_recv(one, 100) == b""
        await task


async def test_who_does_not_read_stops_the_other_end_and_gets_every_byte_in_order() -> None:
    loop = asyncio.get_running_loop()
    (one, near), (far, other) = pair(), pair()
    sent = b"".join(number.to_bytes(4, "big") for number in range(1_000_000))
    with one, near, far, other:
        carrying = asyncio.create_task(Splice(near, far).run(b"", b"", idle=60))
        sending = asyncio.create_task(loop.sock_sendall(one, sent))
        # Everything on the way is full by then.
        done, _ = await asyncio.wait([sending], timeout=0.2)
        assert not done
        heard = bytearray()
        while len(heard) < len(sent):
            heard += await loop.sock_recv(other, 1 << 16)
        assert bytes(heard) == sent
        await sending
        one.close()
        other.close()
        await carrying


async def test_an_end_that_is_gone_ends_both() -> None:
    (one, near), (far, other) = pair(), pair()
    with one, near, far:
        task = asyncio.create_task(Splice(near, far).run(b"", b"", idle=60))
        other.close()
        one.send(b"x")
        await task
