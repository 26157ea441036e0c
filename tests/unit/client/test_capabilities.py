"""A sandbox whose image is older than the client: what it lacks is said, or done without."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import cloister
from cloister_api.exec.v1 import exec_pb2 as pb
from support.fake_sessions import FakeSessions
from support.hostile_pod import HostilePod, hostile
from support.sandbox_server import Sandbox
from support.taken_over import taken_over


class OldPod(HostilePod):
    """Holds one directory of files, and knows nothing that is optional."""

    def __init__(self) -> None:
        super().__init__()
        self.capabilities = ("tools", "processes", "files")
        self.files = {f"/workspace/d/{n}": b"%d" % n for n in range(8)}
        self.sent: list[pb.UploadFrame] = []

    def Stat(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.path == "/workspace/d":
            return pb.Entry(path=request.path, type=pb.Entry.TYPE_DIRECTORY)
        if request.path not in self.files:
            context.abort(grpc.StatusCode.NOT_FOUND, "not there")
        return self._entry(request.path)

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield from (self._entry(each) for each in self.files)

    def Download(self, request: Any, context: Any) -> Any:  # noqa: N802
        assert not request.tree
        assert not request.offset
        data = self.files[request.path]
        yield pb.Chunk(entry=self._entry(request.path), data=data, crc32=zlib.crc32(data))

    def Upload(self, request: Any, context: Any) -> Any:  # noqa: N802
        frames = list(request)
        self.sent += frames
        if len(self.sent) == len(frames):
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        return pb.Entry(path=frames[0].start.path, type=pb.Entry.TYPE_FILE)

    def UploadState(self, request: Any, context: Any) -> Any:  # noqa: N802
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    def _entry(self, path: str) -> pb.Entry:
        return pb.Entry(
            path=path, type=pb.Entry.TYPE_FILE, mode=0o644, size=len(self.files[path]), etag=path
        )


@pytest.fixture
def pod(server: Sandbox, sessions: FakeSessions) -> Iterator[OldPod]:
    """What answers in the sandbox's place."""
    made = OldPod()  # type: ignore[abstract]
    with taken_over(server, sessions, made.add):
        yield made
        made.end()


LACKING: dict[str, Callable[[cloister.Session, Path], object]] = {
    "shells": lambda session, _: session.shell(),
    "terminal": lambda session, _: session.start(["sh"], terminal=(80, 24)),
    "files.edit": lambda session, _: session.files.edit("a", [cloister.Replacement("a", "b")]),
    "files.search": lambda session, _: session.files.grep("a"),
    "files.watch": lambda session, _: session.files.watch().__enter__(),
    "files.tree": lambda session, here: session.upload(here, "/workspace/new/"),
}


@pytest.mark.parametrize("capability", LACKING)
def test_what_a_server_lacks_is_said_before_it_is_asked_for(
    client: cloister.Client, pod: OldPod, tmp_path: Path, capability: str
) -> None:
    (tmp_path / "f").write_text("x")
    with client.create_session("env") as session:
        with pytest.raises(cloister.UnimplementedError, match=r"0\.0\.1, is too old") as error:
            LACKING[capability](session, tmp_path)
        assert error.value.reason == "NO_CAPABILITY"
        assert dict(error.value.metadata) == {"capability": capability}
        with pytest.raises(cloister.UnimplementedError):
            LACKING[capability](session, tmp_path)
    assert pod.asked.count("Info") == 1


def test_a_directory_comes_file_by_file(
    client: cloister.Client, pod: OldPod, tmp_path: Path
) -> None:
    with client.create_session("env") as session:
        assert session.download("/workspace/d", tmp_path / "d") == []
    found = {each.name: each.read_bytes() for each in (tmp_path / "d").iterdir()}
    assert found == {path.rpartition("/")[2]: data for path, data in pod.files.items()}


def test_an_upload_that_was_cut_begins_anew(client: cloister.Client, pod: OldPod) -> None:
    with client.create_session("env") as session:
        assert session.write_bytes("/workspace/f", b"all of it").path == "/workspace/f"
    starts = [each.start for each in pod.sent if each.HasField("start")]
    assert [each.offset for each in starts] == [0, 0]
    assert starts[0].upload_id != starts[1].upload_id


def test_calls_that_need_nothing_optional_cost_no_more(
    client: cloister.Client, sessions: FakeSessions, server: Sandbox
) -> None:
    """The first call under an id asks who answers, as it always did; nothing else does."""
    with hostile() as pod, taken_over(server, sessions, pod.add):
        with client.create_session("env") as session:
            session.start(["x"])
            session.start(["y"], terminal=(80, 24))
            session.shell()
            assert session.server_info().capabilities >= {"files.watch", "terminal"}
        assert pod.asked.count("Info") == 2
        pod.end()
