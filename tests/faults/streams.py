"""Programs and shell commands as the client library follows them, with every event looked at."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import cloister
import cloister.aio
from cloister import _connection, _files, _programs, _shells, _silence, _streams, _uploading
from faults.plans import Plan

SILENCE_SECONDS = 2.0
"""What the client is told to take for a lost connection; stalls are up to 1.4 times as long. A busy
machine may be as silent, which costs a repetition."""
ANSWER_SECONDS = 5.0
"""The same for calls with one answer."""
_FRAME = 50_000


_BOUNDS = (
    (_silence, "SILENCE_SECONDS", SILENCE_SECONDS),
    (_streams, "SILENCE_SECONDS", SILENCE_SECONDS),
    (_connection, "_INFO_SECONDS", ANSWER_SECONDS),
    (_files, "_STAT_SECONDS", ANSWER_SECONDS),
    (_programs, "_CALL_SECONDS", ANSWER_SECONDS),
    (_shells, "_CALL_SECONDS", ANSWER_SECONDS),
    (_uploading, "_CALL_SECONDS", ANSWER_SECONDS),
)


def impatient(put: Callable[[object, str, float], None] = setattr) -> None:
    """Let the client library give connections up so early."""
    for module, name, seconds in _BOUNDS:
        assert hasattr(module, name)
        put(module, name, seconds)


@dataclass
class Ran:
    """What a program printed, by stream, and how it ended."""

    output: dict[str, bytearray] = field(default_factory=dict)
    exit: cloister.Exit | None = None

    @property
    def printed(self) -> bytes:
        """Standard output."""
        return bytes(self.output.get("stdout", b""))

    @property
    def errors(self) -> bytes:
        """Standard error, when it is a stream of its own."""
        return bytes(self.output.get("stderr", b""))


async def run_program(
    session: cloister.aio.AsyncSession,
    plan: Plan,
    script: str,
    *,
    stdin: bytes | None = None,
    apart: bool = False,
) -> Ran:
    """Start a program, feed it, and follow it to its end; apart: stderr as a stream of its own."""
    program = await session.start(
        ["bash", "-c", script],
        process_id=plan.id,
        stdin=stdin is not None,
        separate_stderr=apart,
    )

    async def feed(data: bytes) -> None:
        for at in range(0, len(data), _FRAME):
            await program.write(data[at : at + _FRAME])
        await program.close_stdin()

    # A failure of either ends the other.
    async with asyncio.TaskGroup() as group:
        if stdin is not None:
            group.create_task(feed(stdin))
        following = group.create_task(_read(program))
    return following.result()


async def run_in_shell(
    session: cloister.aio.AsyncSession, shell_id: str, plan: Plan, script: str
) -> Ran:
    """Run a command in a shell and follow it to its end."""
    shell = await session.shell(shell_id)
    return await _read(await shell.run(script, command_id=plan.id))


async def _read(running: cloister.aio.AsyncProcess | cloister.aio.AsyncCommand) -> Ran:
    ran = Ran()
    offset = 0
    async for event in running:
        assert isinstance(event, cloister.Output), event
        assert event.offset == offset, (event.offset, offset)
        offset = event.end
        ran.output.setdefault(event.stream, bytearray()).extend(event.data)
    ran.exit = await running.result()
    return ran
