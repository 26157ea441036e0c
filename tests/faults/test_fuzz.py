"""Hostile requests of every call: each gets a documented status, and nothing is left of them."""

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import MethodDescriptor

from cloister_api.exec.v1 import exec_pb2
from faults.fuzzing import Fuzzer, methods
from support.sandbox_server import sandbox

EXAMPLES = 20


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    """A claimed exec server and its worker's channel."""
    with sandbox(tmp_path_factory.mktemp("sandbox")) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            yield Fuzzer(server, channel)


@pytest.mark.parametrize("method", methods(), ids=lambda each: each.full_name[17:])
def test_every_request_gets_a_documented_answer(fuzzer: Fuzzer, method: MethodDescriptor) -> None:
    fuzzer.furnish()
    fuzzer.fuzz(method, EXAMPLES)


def test_so_do_calls_at_once(fuzzer: Fuzzer) -> None:
    fuzzer.furnish()
    fuzzer.fuzz_at_once(EXAMPLES)


def test_nothing_is_left_of_it_all(fuzzer: Fuzzer) -> None:
    assert fuzzer.calls > EXAMPLES
    fuzzer.close_everything()
