"""bash: commands in a context's persistent shell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..paths import ToolFailure
from ..shell import Cancel, Finished, NotNow, Shell, ShellError
from .inputs import Inputs
from .results import ToolResult

DEFAULT_TIMEOUT = 120.0
_FIELDS = frozenset({"command", "restart", "timeout_ms"})


async def bash(
    shell: Shell,
    given: Mapping[str, Any],
    *,
    cwd: str,
    env: Mapping[str, str],
    budget: float,
    cancel: Cancel,
) -> ToolResult:
    """Run the tool; raises ToolFailure.

    `cwd` and `env` are for a shell that has to be opened. `budget` is the call's bound in seconds,
    0 is none: the command is stopped by whichever bound comes first.
    """
    inputs = Inputs("bash", given, _FIELDS)
    if inputs.flag("restart"):
        await _open(shell, cwd, env)
        return ToolResult("bash session restarted")
    command = inputs.optional_text("command")
    if not command:
        raise ToolFailure("bash: command is required")
    timeout_ms = inputs.integer("timeout_ms") or 0
    if timeout_ms < 0:
        raise ToolFailure("bash: argument timeout_ms must not be negative")
    timeout = timeout_ms / 1000 or DEFAULT_TIMEOUT
    if 0 < budget < timeout:
        timeout = budget
    ended = shell.ended
    if ended:
        await _reopen(shell, shell.cwd, cwd, env)
    elif not shell.alive:
        await _open(shell, shell.cwd or cwd, env)
    try:
        finished = await shell.run(command, timeout, cancel)
    except NotNow as error:
        raise ToolFailure(f"bash: {error}") from None
    except ShellError as error:
        where = await _reopen(shell, shell.cwd, cwd, env)
        raise ToolFailure(f"bash: {error}; a new shell was opened in {where}") from None
    finished = dataclasses.replace(finished, reopened=ended) if ended else finished
    text = finished.output.rstrip("\n")
    if finished.omitted_bytes:
        text = "[output truncated]\n" + text
    notes = []
    if finished.omitted_bytes:
        notes.append(_left_out(finished))
    if finished.cancelled:
        notes.append("bash: command was cancelled")
    elif finished.timed_out:
        notes.append(f"bash: bash command timed out after {round(timeout, 3)}s")
    elif finished.code:
        notes.append(f"[exit code {finished.code}]")
    if finished.shell_closed:
        notes.append("[the shell ended: its context was closed]")
    elif finished.shell_lost:
        where = await _reopen(shell, finished.cwd, cwd, env)
        notes.append(
            f"[the shell ended and a new one was opened in {where}; "
            "variables, functions and background jobs are gone]"
        )
    elif ended:
        notes.append(
            "[the shell had ended since the last command; this ran in a new one, "
            "without its variables, functions and background jobs]"
        )
    text = "\n".join([each for each in (text, *notes) if each])
    return ToolResult(
        text,
        is_error=finished.code != 0 or bool(finished.timed_out or finished.cancelled),
        finished=finished,
    )


def _left_out(finished: Finished) -> str:
    """How much there was beside the end that is shown, and where to read it."""
    shown = finished.total_bytes - finished.omitted_bytes
    text = f"the output has {finished.total_bytes} bytes; shown are the last {shown}"
    if finished.file_bytes == finished.total_bytes:
        text += f"; all of it is in {finished.file}"
    elif finished.file:
        text += f"; the first {finished.file_bytes} are in {finished.file}"
    return f"[{text}]"


async def _open(shell: Shell, cwd: str, env: Mapping[str, str]) -> None:
    try:
        await shell.open(cwd, env)
    except ShellError as error:
        raise ToolFailure(f"bash: {error}") from None


async def _reopen(shell: Shell, wanted: str, fallback: str, env: Mapping[str, str]) -> str:
    """Open a new shell where the old one was, or in the workspace when that is gone."""
    try:
        await shell.open(wanted, env)
    except ShellError:
        await _open(shell, fallback, env)
    return shell.cwd
