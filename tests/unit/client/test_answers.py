"""Answers of a sandbox that was taken over: bounded before they are decoded, whatever they are."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import cloister
from cloister import _channels
from cloister_api.exec.v1 import exec_pb2
from support.fake_sessions import FakeSessions
from support.memory import grows_by_less_than
from support.raw_messages import field
from support.sandbox_server import Sandbox
from support.taken_over import taken_over

MIB = 1024 * 1024


def message(kind: Any, name: str, content: bytes) -> bytes:
    """A field that is a message, by its name."""
    return field(kind.DESCRIPTOR.fields_by_name[name].number, content)


def full_of_nothing(size: int) -> bytes:
    """A result of so many bytes, most of them blocks without content."""
    blocks = message(exec_pb2.CallResult, "content", b"") * (size // 2)
    return message(exec_pb2.CallEvent, "result", blocks)


class Raw(grpc.GenericRpcHandler):
    """Answers with bytes of a test's choice."""

    def __init__(self) -> None:
        self.answer = b""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Every call but the first question of a client."""
        if handler_call_details.method.endswith("/Info"):
            info = exec_pb2.RuntimeInfo(boot_id="b").SerializeToString()
            return grpc.unary_unary_rpc_method_handler(lambda *_: info)
        if handler_call_details.method.endswith("/Call"):
            return grpc.unary_stream_rpc_method_handler(lambda *_: iter([self.answer]))
        return grpc.unary_unary_rpc_method_handler(lambda *_: self.answer)


@pytest.fixture
def raw(server: Sandbox, sessions: FakeSessions) -> Iterator[Raw]:
    made = Raw()

    def add(running: grpc.Server) -> None:
        running.add_generic_rpc_handlers((made,))

    with taken_over(server, sessions, add, [("grpc.max_send_message_length", 64 * MIB)]):
        yield made


def test_an_answer_full_of_fields_takes_no_more_memory_than_its_bytes(
    client: cloister.Client, raw: Raw
) -> None:
    """Decoded it would take a gigabyte: of a worker that has other sessions, too."""
    with client.create_session("env") as session:
        raw.answer = full_of_nothing(2000)
        assert not session.bash("true").text.strip()
        raw.answer = full_of_nothing(32 * MIB)
        with (
            grows_by_less_than(os.getpid(), 250 * MIB),
            pytest.raises(cloister.DataLossError, match="more than 600000 fields"),
        ):
            session.bash("true")


@pytest.mark.parametrize("end", [b"\x80", b"\xff" * 11, b"\x0a\xff"])
def test_a_broken_end_hides_no_fields(end: bytes) -> None:
    """Decoding takes in all that comes before it."""
    raw = full_of_nothing(8 * MIB) + end
    decode = _channels._decoder(exec_pb2.CallEvent.FromString)
    with pytest.raises(cloister.DataLossError, match="more than 600000 fields"):
        assert decode(raw).result


@pytest.mark.parametrize(
    "call",
    [lambda session: session.bash("true"), lambda session: session.stat("/workspace")],
    ids=["stream", "single"],
)
def test_what_is_no_answer_is_said_to_be_none(
    client: cloister.Client, raw: Raw, call: Callable[[cloister.Session], object]
) -> None:
    raw.answer = b"\xff" * 100
    with client.create_session("env") as session, pytest.raises(cloister.DataLossError):
        call(session)


def test_the_largest_honest_answer_is_taken() -> None:
    """A list of as many programs as there can be, with words and labels as short as they can be."""
    program = exec_pb2.Process(
        argv=["x"] * 1820, labels={f"{number:02}": "v" for number in range(64)}
    )
    listed = exec_pb2.ListProcessesResponse(processes=[program] * 256)
    decode = _channels._decoder(exec_pb2.ListProcessesResponse.FromString)
    assert len(decode(listed.SerializeToString()).processes) == 256
