"""Files as long as a disk, which cost a tool nothing to make: looking through one has an end."""

import threading
import uuid
from collections.abc import Iterator

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.contexts import _THREADS
from support.sandbox_server import Sandbox, Tools, refused

pytestmark = pytest.mark.long

LENGTH = 1 << 42


@pytest.fixture
def endless(claimed: Sandbox) -> Iterator[str]:
    path = claimed.workspace / "endless"
    with path.open("wb") as file:
        file.truncate(LENGTH)
    yield "endless"
    path.unlink()


def test_a_read_without_end_keeps_its_budget(tools: Tools, endless: str) -> None:
    """One more than there are threads for tools: the last one waits for the others."""
    said: list[str] = []

    def read(view: list[int]) -> None:
        result = tools.call(
            "read", context_id=uuid.uuid4().hex, budget=1.0, file_path=endless, view_range=view
        )
        said.append(result.content[0].text)

    threads = [threading.Thread(target=read, args=([2, 3],)) for _ in range(_THREADS + 1)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert set(said) == {"read: endless: it takes too long to look through all of it"}
    assert tools.text("glob", pattern="endless").endswith("/endless")


def test_a_text_without_end_is_left_when_its_caller_goes(
    claimed: Sandbox, tools: Tools, endless: str
) -> None:
    with claimed.worker() as channel:
        files = exec_pb2_grpc.FilesStub(channel)
        request = exec_pb2.ReadTextRequest(path=endless, start_line=2)
        for _ in range(8):
            with refused(grpc.StatusCode.DEADLINE_EXCEEDED):
                files.ReadText(request, timeout=0.3)
        (claimed.workspace / "short").write_text("here")
        short = files.ReadText(exec_pb2.ReadTextRequest(path="short"), timeout=30)
        assert short.text == "here"


def test_a_chain_of_links_without_end(claimed: Sandbox, tools: Tools) -> None:
    before = "last"
    for number in range(3000):
        (claimed.workspace / f"chain-{number}").symlink_to(before)
        before = f"chain-{number}"
    (claimed.workspace / "last").write_text("x")
    said = tools.text("read", file_path=before)
    assert said == f"read: path '{before}': too many levels of symbolic links"
    assert tools.text("glob", pattern="las*").endswith("/last")
    assert tools.text("glob", pattern="chain-2999").endswith("/chain-2999")
