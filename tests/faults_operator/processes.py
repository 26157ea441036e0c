"""Operators and exec servers as processes, forked from zygotes."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

_ZYGOTE = Path(__file__).with_name("zygote.py")


class Process:
    """A process that this one did not start itself."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self.ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._descriptor, self._seen)

    def _seen(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self.ended.set()

    def kill(self) -> None:
        """End it at once; that it has ended is fine."""
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)


class Zygote:
    """Makes processes of one program."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._forking = asyncio.Lock()
        self.pid = process.pid

    async def fork(self, env: dict[str, str], log: Path) -> Process:
        """A new process with exactly this environment, whose output is added to a file."""
        assert self._process.stdin
        assert self._process.stdout
        async with self._forking:
            line = json.dumps({"env": env, "log": str(log)})
            self._process.stdin.write(line.encode() + b"\n")
            return Process(int(await self._process.stdout.readline()))


@contextlib.asynccontextmanager
async def zygote(
    *arguments: str, launcher: Sequence[str] = (), **variables: str
) -> AsyncIterator[Zygote]:
    """A Zygote; with it end all its processes. `launcher` is a command before its own, `variables`
    are those that modules read when they are imported.
    """
    paths = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        *launcher,
        sys.executable,
        str(_ZYGOTE),
        *arguments,
        env=paths | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    try:
        said = await process.stdout.readline()
        assert said == b"ready\n", f"the zygote of {arguments[0]} did not start"
        yield Zygote(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
