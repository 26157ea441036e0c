"""Carries one planned call out and checks everything about its outcome."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import cloister.aio
from cloister._models import ToolResult
from faults.plans import BLOB_BYTES, TEXT_BYTES, Plan, Work, blob, text
from faults.streams import Ran, run_in_shell, run_program

JOURNAL = "journal"
"""Every command appends its id to this file."""
JOURNALED = (Work.BASH, Work.PROGRAM, Work.STDIN, Work.SHELL)
_BLOB, _TEXT = "known.bin", "known.txt"


class Known:
    """The bytes that calls print and send, here and in the sandbox."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.blob = blob()
        self.text = text()
        self.lines = self.text.split(b"\n")

    def place(self) -> None:
        """Write them into the workspace."""
        (self.workspace / _BLOB).write_bytes(self.blob)
        (self.workspace / _TEXT).write_bytes(self.text)
        for each in ("edited", "written", "uploaded"):
            (self.workspace / each).mkdir()
        assert (len(self.blob), len(self.text)) == (BLOB_BYTES, TEXT_BYTES)

    def journal(self) -> list[str]:
        """The ids of the commands that ran, in their order, as often as they ran."""
        journal = self.workspace / JOURNAL
        return journal.read_text().split() if journal.exists() else []


@dataclass
class Lane:
    """What calls of one connection use, one call after the other."""

    name: str
    session: cloister.aio.AsyncSession
    twin: cloister.aio.AsyncSession
    """The same session over a second connection."""


async def carry_out(plan: Plan, lane: Lane, known: Known) -> None:
    """Make the call and raise AssertionError unless it did exactly what it should."""
    if plan.work is Work.EDIT:
        (known.workspace / "edited" / plan.id).write_bytes(b"tick\n" + _part(plan, known))
    sessions = [lane.session, lane.twin] if plan.twice else [lane.session]
    calls = [asyncio.create_task(_call(plan, lane, each, known)) for each in sessions]
    try:
        await asyncio.gather(*calls)
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def _part(plan: Plan, known: Known) -> bytes:
    whole = known.text if plan.work in (Work.BASH, Work.READ, Work.WRITE, Work.EDIT) else known.blob
    return whole[plan.start : plan.start + plan.size]


def _script(plan: Plan, source: str) -> str:
    """Prints the call's part of a file, in two halves; its last status is the call's code."""
    half = plan.size // 2
    first = f"tail -c +{plan.start + 1} {source} | head -c {half}"
    second = f"tail -c +{plan.start + half + 1} {source} | head -c {plan.size - half}"
    pause = f"sleep {plan.pause}; " if plan.pause else ""
    return f"echo {plan.id} >> {JOURNAL}; {first}; {pause}{second}; (exit {plan.code})"


async def _call(plan: Plan, lane: Lane, session: cloister.aio.AsyncSession, known: Known) -> None:
    part = _part(plan, known)
    match plan.work:
        case Work.BASH:
            script = _script(plan, _TEXT).replace("; (exit", "; printf .; (exit")
            answer = await _tool(plan, lane, session, "bash", command=script)
            assert answer.exit_code == plan.code
            _same(answer.text, part.decode() + f".\n[exit code {plan.code}]")
        case Work.READ:
            first = 1 + plan.start // 80
            last = first + 1 + plan.size // 80
            wanted = b"\n".join(known.lines[first - 1 : last])
            answer = await _tool(
                plan, lane, session, "read", file_path=_TEXT, view_range=[first, last]
            )
            _same(answer.text, wanted.decode())
        case Work.WRITE:
            path = f"written/{plan.id}"
            await _tool(plan, lane, session, "write", file_path=path, content=part.decode())
            _same((known.workspace / path).read_bytes(), part)
        case Work.EDIT:
            path = f"edited/{plan.id}"
            answer = await _tool(
                plan, lane, session, "edit",
                file_path=path, old_string="tick", new_string="tick tock",
            )  # fmt: skip
            assert not answer.is_error, answer.text
            _same((known.workspace / path).read_bytes(), b"tick tock\n" + part)
        case Work.PROGRAM:
            script, apart = _script(plan, _BLOB), plan.number % 2 == 1
            if apart:
                script = f"{{ {script}; }} | tee /dev/stderr; exit ${{PIPESTATUS[0]}}"
            ran = await run_program(session, plan, script, apart=apart)
            _same(ran.errors, part if apart else b"")
            _ended(plan, ran, part)
        case Work.STDIN:
            script = f"echo {plan.id} >> {JOURNAL}; cat; exit {plan.code}"
            _ended(plan, await run_program(session, plan, script, stdin=part), part)
        case Work.SHELL:
            ran = await run_in_shell(session, lane.name, plan, _script(plan, _BLOB))
            _ended(plan, ran, part)
        case Work.UPLOAD:
            path = f"uploaded/{plan.id}"
            entry = await session.write_bytes(path, part)
            assert entry.size == plan.size
            _same((known.workspace / path).read_bytes(), part)
        case Work.DOWNLOAD:
            path = f"uploaded/{plan.id}"
            (known.workspace / path).write_bytes(part)
            _same(await session.read_bytes(path), part)
            (known.workspace / path).unlink()


async def _tool(
    plan: Plan, lane: Lane, session: cloister.aio.AsyncSession, tool: str, **given: object
) -> ToolResult:
    return await session.call(tool, given, request_id=plan.id, context=lane.name)


def _ended(plan: Plan, ran: Ran, part: bytes) -> None:
    _same(ran.printed, part)
    assert ran.exit is not None
    assert (ran.exit.code, ran.exit.reason) == (plan.code, "exited"), ran.exit


def _same(found: str | bytes, wanted: str | bytes) -> None:
    """Compare, and say where they part rather than print megabytes."""
    if found == wanted:
        return
    assert type(found) is type(wanted)
    place = next(
        (at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b),
        min(len(found), len(wanted)),
    )
    raise AssertionError(
        f"{len(found)} instead of {len(wanted)}, different from {place} on: "
        f"{found[place : place + 40]!r} instead of {wanted[place : place + 40]!r}"
    )
