"""What comes while something else is half done: each of both is as if it had come alone."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import guard, processes, server, uploads
from cloister_sandbox.config import Config
from cloister_sandbox.contexts import Contexts
from cloister_sandbox.errors import CallError, Unavailable
from cloister_sandbox.jobs import Jobs, Reason
from cloister_sandbox.outputs import Policy
from cloister_sandbox.paths import Roots
from cloister_sandbox.processes import Reaper
from cloister_sandbox.programs import Order, Programs
from cloister_sandbox.recipe import RecipeError
from cloister_sandbox.services import runtime, transfers
from cloister_sandbox.services.files import FilesService
from cloister_sandbox.services.runtime import RuntimeService
from cloister_sandbox.shell import Shell
from cloister_sandbox.shells import Shells, Slot
from cloister_sandbox.state import Activity, Phase, ServerState
from support.descriptors import descriptors, let_go
from support.eventually import until

PEM = b"-----BEGIN "
Frame = exec_pb2.UploadFrame
WHOLE = (Frame(data=b"x"), Frame(end=exec_pb2.UploadEnd(size=1)))


async def _stream(
    start: exec_pb2.UploadStart, *frames: exec_pb2.UploadFrame
) -> AsyncIterator[exec_pb2.UploadFrame]:
    """An upload that says no more than this."""
    yield Frame(start=start)
    for each in frames:
        yield each


def _held(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> tuple[threading.Event, threading.Event]:
    """Let a method wait; returns what tells that it was called, and what lets it go on."""
    called, go_on = threading.Event(), threading.Event()
    method = getattr(owner, name)

    def slow(*given: Any) -> Any:
        called.set()
        go_on.wait()
        return method(*given)

    monkeypatch.setattr(owner, name, slow)
    return called, go_on


class Identity:
    """Has no other key than its first."""

    def replace(self, _: object) -> None:
        """Must not be called."""
        raise AssertionError


async def test_a_pod_that_is_drained_while_it_is_claimed_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = ServerState(phase=Phase.WARM)

    async def drained_meanwhile(_: str, replace: Callable[[], None]) -> None:
        state.phase = Phase.DRAINING
        replace()

    monkeypatch.setattr(runtime, "hand_over", drained_meanwhile)
    config = Config.from_environment({"CLOISTER_POD_UID": "pod", "CLOISTER_HOME": str(tmp_path)})
    made: Any = RuntimeService
    service = made(config, state, Identity(), Activity(), None, None)
    request = exec_pb2.ClaimRequest(
        session_uid="s", pod_uid="pod", certificate_pem=PEM, private_key_pem=PEM
    )
    claim = RuntimeService.Claim.__wrapped__  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="draining"):
        await claim(service, request, None)
    assert (state.phase, state.session_uid) == (Phase.DRAINING, "")


async def test_package_sources_are_asked_once_though_who_asked_first_leaves(
    tmp_path: Path,
) -> None:
    """A shell half started would be nobody's, with its descriptors; two at once have one place."""
    asked, go_on = asyncio.Event(), asyncio.Event()
    times = 0

    async def ask() -> list[tuple[str, str]]:
        nonlocal times
        times += 1
        asked.set()
        await go_on.wait()
        return [("pip", "https://packages.example.com")]

    config = Config.from_environment({"CLOISTER_POD_UID": "pod", "CLOISTER_HOME": str(tmp_path)})
    made: Any = RuntimeService
    service = made(config, ServerState(phase=Phase.WARM), Identity(), Activity(), None, ask)
    sources = RuntimeService.PackageSources.__wrapped__  # type: ignore[attr-defined]
    asking = asyncio.create_task(sources(service, exec_pb2.PackageSourcesRequest(), None))
    await asked.wait()
    asking.cancel()
    await asyncio.wait([asking])
    next_one = asyncio.create_task(sources(service, exec_pb2.PackageSourcesRequest(), None))
    for _ in range(5):
        await asyncio.sleep(0)
    go_on.set()
    answer = await next_one
    assert [each.manager for each in answer.sources] == ["pip"]
    assert times == 1


@pytest.mark.parametrize("failing", [False, True])
async def test_a_pod_that_is_drained_while_it_is_set_up_goes_on_draining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, failing: bool
) -> None:
    """A setup script that is ended so has failed, of which nothing is to be told."""

    async def drained_meanwhile(*_: object, **__: object) -> None:
        await own.drain(0.0)
        if failing:
            raise RecipeError("the setup script ended with exit code 137")

    monkeypatch.setattr(server, "carry_out", drained_meanwhile)
    monkeypatch.setattr(guard, "close_ipv6", lambda: True)
    own = server_below(tmp_path)
    await own._prepare()
    assert (own._state.phase, own._state.problem) == (Phase.DRAINING, "")


async def test_connections_that_do_not_close_keep_no_server_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Held:
        async def stop(self, grace: float) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(server, "_CLOSING", 0.01)
    own = server_below(tmp_path)
    own._grpc = Held()  # type: ignore[assignment]
    await own.stop()
    assert "did not close" in caplog.text


def server_below(directory: Path) -> server.Server:
    """A server, not started, all of whose files are in this directory."""
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (directory / name).write_bytes(PEM)
    places = ("IDENTITY_DIR", "RECIPE_DIR", "STATE_DIR", "WORKSPACE", "HOME")
    variables = {f"CLOISTER_{each}": str(directory) for each in places}
    return server.Server(Config.from_environment({"CLOISTER_POD_UID": "pod", **variables}))


async def test_what_its_caller_closes_meanwhile_keeps_no_server_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all end at once: one by one the last of many would be told after minutes."""
    config = Config.from_environment({"CLOISTER_POD_UID": "pod", "CLOISTER_HOME": str(tmp_path)})
    contexts = Contexts(config, ServerState(), Reaper())
    shells = Shells(tmp_path, Reaper(), Activity(), Jobs())
    ending = most = 0

    async def retire(_: Shell) -> None:
        nonlocal ending, most
        ending += 1
        most = max(most, ending)
        for _turn in range(10):
            await asyncio.sleep(0)
        ending -= 1

    monkeypatch.setattr(Shell, "retire", retire)
    for each in ("one", "two", "three"):
        shell = contexts.get(each).shell
        shells._slots[each] = Slot(each, b"", "", {}, shell)
    for closing, close_all in ((contexts, contexts.close_all), (shells, shells.close_all)):
        most = 0
        caller = asyncio.create_task(closing.close("two"))
        await close_all()
        await caller
        assert most == 3


async def test_what_programs_left_ends_together_with_those_that_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may trace them, and keep their ends to itself until it ends."""
    programs = Programs(Reaper(), Activity())
    ended = asyncio.Event()

    async def kill() -> None:
        ended.set()

    async def stop_all(_: Reason) -> None:
        await ended.wait()

    monkeypatch.setattr(programs._survivors, "kill", kill)
    monkeypatch.setattr(programs.jobs, "stop_all", stop_all)
    async with asyncio.timeout(30):
        await programs.close()


async def test_streams_that_begin_one_upload_at_once_leave_nothing(tmp_path: Path) -> None:
    """As when a connection breaks while the first one's file is being made."""
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    upload = FilesService.Upload.__wrapped__  # type: ignore[attr-defined]

    async def both(number: int) -> None:
        start = exec_pb2.UploadStart(path=f"f{number}", upload_id=f"u{number}")
        ends = await asyncio.gather(
            *(upload(files, _stream(start, *frames), None) for frames in ((), WHOLE)),
            return_exceptions=True,
        )
        assert isinstance(ends[0], CallError)
        assert isinstance(ends[1], exec_pb2.Entry)

    await both(0)
    open_before = descriptors()
    for number in range(1, 5):
        await both(number)
    assert descriptors() <= open_before
    assert sorted(os.listdir(tmp_path)) == [f"f{each}" for each in range(5)]  # noqa: PTH208
    await files.close()


async def test_an_upload_that_somebody_took_over_and_left_is_closed_when_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    upload = FilesService.Upload.__wrapped__  # type: ignore[attr-defined]
    placing, go_on = _held(monkeypatch, files._uploads, "place")

    begin = exec_pb2.UploadStart(path="f", upload_id="u")
    first = asyncio.create_task(upload(files, _stream(begin, *WHOLE), None))
    await asyncio.to_thread(placing.wait)
    with pytest.raises(CallError, match="1 bytes of this upload have arrived"):
        await upload(files, _stream(begin), None)
    go_on.set()
    assert (await first).size == 1
    assert [each.fd for each in files._uploads.all()] == [-1]
    await files.close()


def _names(directory: Path) -> list[str]:
    return [each.name for each in directory.iterdir()]


async def test_an_upload_that_is_done_outlasts_a_wrong_frame_of_who_took_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor is in use, and would be another file's; nor does a new one take its place."""
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    upload = FilesService.Upload.__wrapped__  # type: ignore[attr-defined]
    placing, go_on = _held(monkeypatch, files._uploads, "place")

    monkeypatch.setattr(uploads, "MAX_UPLOADS", 1)
    begin = exec_pb2.UploadStart(path="f", upload_id="u")
    first = asyncio.create_task(upload(files, _stream(begin, *WHOLE), None))
    await asyncio.to_thread(placing.wait)
    again = exec_pb2.UploadStart(path="f", upload_id="u", offset=1)
    with pytest.raises(CallError, match="must be sent once"):
        await upload(files, _stream(again, Frame(start=again)), None)
    with pytest.raises(CallError, match="1 uploads are under way"):
        await upload(files, _stream(exec_pb2.UploadStart(path="g", upload_id="v")), None)
    go_on.set()
    assert (await first).size == 1
    assert [each.fd for each in files._uploads.all()] == [-1]
    assert _names(tmp_path) == ["f"]
    await files.close()


async def test_who_leaves_while_an_older_upload_goes_for_a_new_one_leaves_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    begun, go_on = _held(monkeypatch, uploads.Upload, "discard")
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 1)
    older, mine = object(), object()
    kept = await files._begin(exec_pb2.UploadStart(path="f", upload_id="u"), older)
    await files._let_go(kept, older, keep=True)
    new = exec_pb2.UploadStart(path="g", upload_id="v")
    leaving = asyncio.create_task(files._begin(new, mine))
    await asyncio.to_thread(begun.wait)
    leaving.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await until(lambda: (files._uploads.all(), _names(tmp_path)) == ([], []))
    await files.close()


async def test_who_leaves_while_a_write_goes_on_keeps_no_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took the upload over from a stream whose last bytes are being written."""
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    start = exec_pb2.UploadStart(path="f", upload_id="u")
    kept = await files._begin(start, object())
    taken = asyncio.Event()

    async def writing(_: uploads.Upload) -> None:
        taken.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(transfers, "_settled", writing)
    leaving = asyncio.create_task(files._begin(start, object()))
    await taken.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert kept.stream is None
    await files.close()


async def test_who_leaves_takes_no_removal_of_an_upload_back(tmp_path: Path) -> None:
    """One that waits for a thread: its descriptors and its hidden file would stay."""
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    made = await files._begin(exec_pb2.UploadStart(path="f"), object())
    go_on = threading.Event()
    busy = [files._lanes.bulk.submit(go_on.wait) for _ in range(4)]
    leaving = asyncio.create_task(files._discard(made))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    go_on.set()
    await asyncio.gather(*busy)
    await until(lambda: (made.fd, _names(tmp_path)) == (-1, []))
    await files.close()


def test_an_upload_that_is_discarded_twice_at_once_closes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To let a file go can take a minute, and its descriptor is another file's by then."""
    made = uploads.Uploads(Roots(tmp_path, (), ())).create(
        exec_pb2.UploadStart(path="f"), str(tmp_path / "f")
    )
    closed: list[int] = []
    close = os.close

    def slow(fd: int) -> None:
        if fd not in closed:
            close(fd)
        closed.append(fd)
        if len(closed) == 1:
            made.discard()

    monkeypatch.setattr(os, "close", slow)
    made.discard()
    assert len(closed) == len(set(closed)) == 2


async def test_a_program_that_gets_no_terminal_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools can fill the table of processes for as long as they like, and callers try again."""
    reaper = Reaper()
    programs = Programs(reaper, Activity())
    order = Order(("true",), str(tmp_path), {"PATH": os.environ["PATH"]}, Policy(), size=(80, 24))

    def full(*_: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(processes, "_begin", full)

    async def fails(job_id: str) -> None:
        job, _ = programs.start(job_id, b"", order)
        await asyncio.wait([job.done])
        assert job.failure is not None
        assert job.failure.kind == "RESOURCE_LIMIT"

    await fails("first")
    open_before = await let_go(reaper.hands)
    for number in range(5):
        await fails(f"{number}")
    assert await let_go(reaper.hands) <= open_before
