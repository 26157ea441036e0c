"""cloister exec and cloister ps: programs whose output is passed on while it comes."""

import argparse
import contextlib
import os
import secrets
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from types import FrameType

from .._errors import CloisterError, StartFailedError
from .._models import ToolResult
from .._outcomes import Gap, OutputPolicy
from .._sync import Session
from .._sync_client import Client
from .._sync_programs import Process
from . import output

_NO_OUTPUT = "(no output)"
# Between asking an interrupted program to end and killing it.
_GRACE_SECONDS = 2.0
# As shells have it.
_CODES = {"not_found": 127, "permission_denied": 126, "not_executable": 126}
_WHY = {
    "timed_out": "the command's time was used up and it was stopped",
    "oom_killed": "the command was ended for want of memory",
    "shutdown": "the sandbox is ending, and the command was stopped",
}


def execute(client: Client, arguments: argparse.Namespace) -> int:
    """cloister exec"""
    session = client.get_session(arguments.name)
    if arguments.shell:
        return _in_agents_shell(session, arguments)
    source = None if arguments.no_stdin else _stdin()
    # Chosen here, so that a start that was interrupted can be found and stopped.
    process_id = f"exec-{secrets.token_hex(8)}"
    with _ended_by_signals():
        try:
            process = session.start(
                command_line(arguments.command),
                stdin=source is not None,
                timeout=arguments.timeout,
                # A reader that is slow must not lose anything, as with a local pipe.
                output=OutputPolicy(block_when_full=True),
                process_id=process_id,
            )
            if source is not None:
                threading.Thread(target=_feed, args=(source, process), daemon=True).start()
            return _pass_on(process)
        except StartFailedError as error:
            output.problem(error)
            return _CODES.get(error.kind, 1)
        except BaseException:
            with contextlib.suppress(CloisterError):
                session.attach(process_id).stop(grace=_GRACE_SECONDS)
            raise
        finally:
            with contextlib.suppress(CloisterError):
                session.attach(process_id).release()


def list_programs(client: Client, arguments: argparse.Namespace) -> int:
    """cloister ps"""
    found = client.get_session(arguments.name).processes()
    output.programs(found, arguments.output, arguments.name)
    return 0


def command_line(words: Sequence[str]) -> list[str]:
    """What to run: a single word is a shell's command line, several are a program's arguments."""
    return ["bash", "-c", words[0]] if len(words) == 1 else list(words)


def _pass_on(process: Process) -> int:
    """Print what it prints, as it comes; returns its exit code."""
    for event in process:
        if isinstance(event, Gap):
            print(
                f"cloister: {event.end - event.start} bytes of output were not kept",
                file=sys.stderr,
            )
        else:
            # Bytes are passed on exactly, also those that are no text.
            target = (sys.stderr if event.stream == "stderr" else sys.stdout).buffer
            target.write(event.data)
            target.flush()
    ended = process.result()
    why = _WHY.get(ended.reason)
    if why:
        print(f"cloister: {why}", file=sys.stderr)
    return ended.status or (1 if why else 0)


def _stdin() -> int | None:
    """The descriptor to forward; None when a person would have to type it, or there is none."""
    try:
        fd = sys.stdin.fileno()
        return None if os.isatty(fd) else fd
    except (AttributeError, OSError, ValueError):
        return None


def _feed(source: int, process: Process) -> None:
    # When the program does not read any more, or is out of reach, who reads its output tells; and
    # when that has ended, the connection is closed under a write that is still on its way.
    with contextlib.suppress(CloisterError, CancelledError):
        try:
            while data := os.read(source, 65_536):
                process.write(data)
        except OSError:
            # It cannot be read: the program sees the end of it.
            pass
        process.close_stdin()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal that ends this command end what it runs too, as Ctrl-C does."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_agents_shell(session: Session, arguments: argparse.Namespace) -> int:
    """Run it in a shell of the tools, as an agent's own command."""
    words = arguments.command
    command = words[0] if len(words) == 1 else shlex.join(words)
    timeout_ms = None if arguments.timeout is None else arguments.timeout * 1000
    result = session.bash(command, timeout_ms=timeout_ms, context=arguments.shell)
    text = _printed(result)
    if text:
        print(text)
    if result.timed_out:
        print(f"cloister: {_WHY['timed_out']}", file=sys.stderr)
    if result.truncated:
        print(
            f"cloister: {result.omitted_bytes} of {result.total_bytes} bytes of output left out",
            file=sys.stderr,
        )
    if result.exit_code is not None:
        return result.exit_code or (1 if result.is_error else 0)
    return 1 if result.is_error else 0


def _printed(result: ToolResult) -> str:
    """What the command printed, without the notes that the tool adds for models."""
    text = result.text
    if text == _NO_OUTPUT:
        return ""
    if result.exit_code:
        before, note, _ = text.rpartition(f"[exit code {result.exit_code}]")
        if note and (not before or before.endswith("\n")):
            return before.removesuffix("\n")
    return text
