"""Memory that large requests take is given back, also when they fail."""

from pathlib import Path

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.edits import MAX_STRINGS
from support.file_calls import FileCalls, eventually
from support.memory import peak, resident
from support.sandbox_server import Sandbox, refused, sandbox

pytestmark = pytest.mark.long

MIB = 1024 * 1024


def test_what_failed_calls_took_is_given_back(tmp_path: Path) -> None:
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        pid = server.process.pid
        before = resident(pid)
        with server.worker() as channel:
            files = FileCalls(channel)
            files.upload("f", b"text")
            request = exec_pb2.EditRequest(path="f")
            request.edits.add(old_string="x" * (MAX_STRINGS // 2), new_string="y")
            request.edits.add(old_string="x" * (MAX_STRINGS // 4), new_string="y")
            for _ in range(40):
                with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="OLD_STRING_NOT_FOUND"):
                    files.stub.Edit(request, timeout=30)
            assert peak(pid) > before + 48 * MIB, "something to give back"
            eventually(lambda: resident(pid) < before + 48 * MIB)


@pytest.mark.parametrize(("more", "accepted"), [(0, True), (1, False)])
def test_the_strings_of_an_edit_are_bounded(claimed: Sandbox, more: int, accepted: bool) -> None:
    with claimed.worker() as channel:
        files = FileCalls(channel)
        files.upload("bounded", b"a")
        request = exec_pb2.EditRequest(path="bounded")
        request.edits.add(old_string="a", new_string="b" * (MAX_STRINGS - 1 + more))
        if accepted:
            assert files.stub.Edit(request, timeout=30).entry.size == MAX_STRINGS - 1
        else:
            with refused(grpc.StatusCode.INVALID_ARGUMENT, "edits"):
                files.stub.Edit(request, timeout=30)
            assert files.download("bounded")[0] == b"a"
