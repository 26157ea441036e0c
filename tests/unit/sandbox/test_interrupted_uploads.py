"""Uploads that nobody goes on with: their bytes do not stay on the disk."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import uploads
from cloister_sandbox.errors import Busy
from cloister_sandbox.lanes import MAX_WAITING
from cloister_sandbox.paths import Roots
from cloister_sandbox.services import transfers
from cloister_sandbox.services.files import FilesService
from cloister_sandbox.state import Activity, Phase, ServerState
from support.eventually import until


class Ended(Exception):
    """The call has."""


class Call:
    """What gRPC gives a handler."""

    def set_trailing_metadata(self, _: object) -> None:
        """Nobody reads it."""

    async def abort(self, *_: object) -> NoReturn:
        """As gRPC does."""
        raise Ended


def kept(directory: Path) -> list[Path]:
    return list(directory.iterdir())


async def cut() -> AsyncIterator[exec_pb2.UploadFrame]:
    """A stream that ends too early."""
    yield exec_pb2.UploadFrame(start=exec_pb2.UploadStart(path="f", upload_id="cut"))
    yield exec_pb2.UploadFrame(data=b"x" * 100_000)


async def test_an_interrupted_upload_goes_though_no_other_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "SWEEP_SECONDS", 0.01)
    state = ServerState(phase=Phase.CLAIMED)
    service = FilesService(state, Roots(tmp_path, (), ()), Activity())

    async def offset() -> int:
        request = exec_pb2.UploadStateRequest(upload_id="cut")
        return int((await service.UploadState(request, Call())).offset)

    async with asyncio.timeout(60):
        with pytest.raises(Ended):
            await service.Upload(cut(), Call())
        first = service._sweep
        await until(lambda: service._sweep is not first, pause=0.005)
        assert await offset() == 100_000, "a look takes none before its time"
        assert len(kept(tmp_path)) == 1
        monkeypatch.setattr(uploads, "KEPT_SECONDS", 0.0)
        await until(lambda: not kept(tmp_path), pause=0.005)
        assert await offset() == 0
        await until(lambda: service._sweep is None)


async def test_an_upload_that_ends_while_others_wait_for_the_disk_leaves_nothing(
    tmp_path: Path,
) -> None:
    """It is nobody's any more: to be told to come again would leave it for ever."""
    files = FilesService(ServerState(phase=Phase.CLAIMED), Roots(tmp_path, (), ()), Activity())
    stream, go_on = object(), threading.Event()
    made = await files._begin(exec_pb2.UploadStart(path="f"), stream)
    busy = [files._lanes.bulk.submit(go_on.wait) for _ in range(4 * MAX_WAITING)]
    with pytest.raises(Busy):
        files._lanes.bulk.submit(int)
    leaving = asyncio.create_task(files._let_go(made, stream, keep=False))
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(leaving, *busy)
    assert (made.fd, kept(tmp_path)) == (-1, [])
    await files.close()
