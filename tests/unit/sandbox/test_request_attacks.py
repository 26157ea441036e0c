"""Requests that are made to cost much: they are refused before they are decoded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api import wire
from cloister_api.exec.v1 import exec_pb2
from cloister_api.wire import too_many_fields
from support.memory import grows_by_less_than
from support.raw_messages import field
from support.sandbox_server import (
    SESSION_NAME,
    SESSION_UID,
    Sandbox,
    Tools,
    refused,
    sandbox,
)

pytestmark = pytest.mark.long

MIB = 1024 * 1024


def call_with_empty_values(size: int) -> bytes:
    """A call whose input is a list of nothings, of about so many bytes."""
    values = field(6, field(1, b"") * (size // 2))
    entry = field(1, b"k") + field(2, values)
    which = exec_pb2.CallRequest.DESCRIPTOR.fields_by_name["input"].number
    return exec_pb2.CallRequest(request_id="1", tool="read").SerializeToString() + field(
        which, field(1, entry)
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sandbox]:
    with sandbox(tmp_path) as started:
        started.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        started.claim()
        yield started


@pytest.mark.parametrize(
    ("session", "code"),
    [
        (SESSION_UID, grpc.StatusCode.INVALID_ARGUMENT),
        ("another", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_a_request_full_of_fields_takes_no_more_memory_than_its_bytes(
    server: Sandbox, session: str, code: grpc.StatusCode
) -> None:
    """Decoded it would take 800 MB, and whoever has a certificate of the CA can send it."""
    with server.worker() as channel:
        Tools(channel).bash("echo warm")
    caller = server.authority.issue(uri=f"session:{session}")
    with (
        grows_by_less_than(server.process.pid, 200 * MIB),
        server.channel(caller, SESSION_NAME) as channel,
    ):
        call: Any = channel.unary_stream("/cloister.exec.v1.Tools/Call")
        with refused(code):
            list(call(call_with_empty_values(31 * MIB), timeout=60))


def test_no_request_is_unpacked(server: Sandbox) -> None:
    """Whoever has a certificate of the CA could fill the memory with a few small messages."""
    many_of_a_stranger(server, grpc.StatusCode.UNIMPLEMENTED, compression=grpc.Compression.Gzip)


def test_no_request_of_a_stranger_is_taken(server: Sandbox) -> None:
    """Whoever has another session's certificate could fill the memory by many at once."""
    many_of_a_stranger(server, grpc.StatusCode.PERMISSION_DENIED)


def many_of_a_stranger(server: Sandbox, code: grpc.StatusCode, **given: Any) -> None:
    """Large requests at once are refused with this code, and take no memory."""
    with server.worker() as channel:
        Tools(channel).bash("echo warm")
    caller = server.authority.issue(uri="session:another")
    with (
        grows_by_less_than(server.process.pid, 60 * MIB),
        server.channel(caller, SESSION_NAME) as channel,
    ):
        call: Any = channel.unary_stream("/cloister.exec.v1.Tools/Call")
        begun = [call(bytes(31 * MIB), timeout=60, **given) for _ in range(8)]
        for each in begun:
            with refused(code):
                list(each)


def test_what_is_large_and_no_more_than_that_is_decoded(server: Sandbox) -> None:
    text = "é" * 5 * MIB
    with server.worker() as channel:
        said = Tools(channel).text("write", file_path="large", content=text)
    assert said == f"wrote {10 * MIB} bytes to large"


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (exec_pb2.CallRequest, call_with_empty_values(wire.SMALL // 2), False),
        (exec_pb2.CallRequest, call_with_empty_values(2 * wire.SMALL), True),
        (exec_pb2.StartRequest, field(2, b"") * wire.SMALL, True),
        (exec_pb2.StartRequest, field(2, b"x" * 100) * 20_000, False),
        (exec_pb2.CancelRequest, field(1, b"\x0a\x00" * wire.SMALL), False),
        (exec_pb2.CancelRequest, b"\x10\x01" * wire.SMALL, True),
        (exec_pb2.CancelRequest, b"\x19" + b"0" * 2 * wire.SMALL, True),
        (exec_pb2.CancelRequest, b"\xff" * 2 * wire.SMALL, False),
        (exec_pb2.CancelRequest, field(1, b"x" * 2 * wire.SMALL)[:-1], False),
    ],
)
def test_fields_are_counted_as_a_decoder_does(kind: type, raw: bytes, expected: bool) -> None:
    assert too_many_fields(raw, kind.DESCRIPTOR) is expected  # type: ignore[attr-defined]
