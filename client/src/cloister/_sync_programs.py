"""Process, Command and Shell: the asynchronous ones, for programs without an event loop."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from ._outcomes import Event, Exit, OutputPolicy, ShellInfo
from ._programs import AsyncProcess
from ._shells import AsyncCommand, AsyncShell, OnTimeout
from ._streams import OUTPUT_LIMIT, AsyncOutput
from ._sync_loop import run as _run
from ._sync_loop import step as _step


class _Output:
    """What Process and Command have in common; see AsyncOutput.

    An interrupt (Ctrl-C) of a loop over it leaves the program running, and the next loop goes on.
    """

    def __init__(self, output: AsyncOutput) -> None:
        self._output = output

    @property
    def offset(self) -> int:
        """The offset of the byte that is read next; `attach` takes it."""
        return self._output.offset

    @property
    def exit(self) -> Exit | None:
        """How it ended, as far as this object has seen; `result` waits for it."""
        return self._output.exit

    @property
    def on_loss(self) -> Callable[[bool], object] | None:
        """Called while output is read, from another thread; see AsyncProcess."""
        return self._output.on_loss

    @on_loss.setter
    def on_loss(self, call: Callable[[bool], object] | None) -> None:
        self._output.on_loss = call

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = _step(self._output)
        if event is None:
            raise StopIteration
        return event

    def text(self, stream: str | None = None) -> Iterator[str]:
        """The output as text while it comes; see AsyncProcess.text."""
        pieces = self._output.text(stream)
        while (piece := _step(pieces)) is not None:
            yield piece

    def output(self, stream: str | None = None, *, limit: int = OUTPUT_LIMIT) -> bytes:
        """Everything it prints, from the first byte to the end; see AsyncProcess.output."""
        return _run(lambda: self._output.output(stream, limit=limit))


class Process(_Output):
    """A program, from Session.start or attach; do not make one yourself.

    Methods, errors and retries are those of AsyncProcess.
    """

    def __init__(self, process: AsyncProcess) -> None:
        super().__init__(process)
        self._async = process

    @property
    def id(self) -> str:
        """The id by which Session.attach finds it, from any program of the session."""
        return self._async.id

    def result(self) -> Exit:
        """Wait until it has ended; see AsyncProcess.result."""
        return _run(self._async.result)

    def wait(self, seconds: float) -> Exit | None:
        """How it ended, or None when it still runs after so many seconds."""
        return _run(lambda: self._async.wait(seconds))

    def write(self, data: bytes) -> None:
        """Write to its standard input, each byte once; see AsyncProcess.write."""
        _run(lambda: self._async.write(data))

    def close_stdin(self) -> None:
        """End its standard input; on a terminal this is Ctrl-D. Closing twice is no error."""
        _run(self._async.close_stdin)

    def signal(self, number: int, *, scope: str = "group", kill_after: float | None = None) -> None:
        """Send it a signal; see AsyncProcess.signal."""
        _run(lambda: self._async.signal(number, scope=scope, kill_after=kill_after))

    def resize(self, columns: int, rows: int) -> None:
        """Change the size of its terminal, in characters."""
        _run(lambda: self._async.resize(columns, rows))

    def stop(self, *, grace: float = 0.0) -> Exit:
        """End it with everything that it started; see AsyncProcess.stop."""
        return _run(lambda: self._async.stop(grace=grace))

    def release(self) -> None:
        """Let the server forget it and its output; see AsyncProcess.release."""
        _run(self._async.release)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _run(lambda: self._async.__aexit__(kind, error, traceback), ending=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


class Command(_Output):
    """A command of a shell, from Shell.run or attach; do not make one yourself.

    Methods, errors and retries are those of AsyncCommand.
    """

    def __init__(self, command: AsyncCommand) -> None:
        super().__init__(command)
        self._async = command

    @property
    def id(self) -> str:
        """The id by which Shell.attach finds it."""
        return self._async.id

    def result(self) -> Exit:
        """Wait until it has ended, or was detached; its output can be read afterwards."""
        return _run(self._async.result)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"


class Shell:
    """A shell, from Session.shell; do not make one yourself.

    Methods, errors and retries are those of AsyncShell.
    """

    def __init__(self, shell: AsyncShell) -> None:
        self._async = shell

    @property
    def id(self) -> str:
        """The id by which Session.shell finds it, from any program of the session."""
        return self._async.id

    @property
    def info(self) -> ShellInfo:
        """The shell as it was when it was opened or reset."""
        return self._async.info

    def run(
        self,
        script: str,
        *,
        timeout: float | None = None,
        on_timeout: OnTimeout = "kill",
        output: OutputPolicy | None = None,
        command_id: str | None = None,
    ) -> Command:
        """Run a command; returns when it was begun. See AsyncShell.run."""
        return Command(
            _run(
                lambda: self._async.run(
                    script,
                    timeout=timeout,
                    on_timeout=on_timeout,
                    output=output,
                    command_id=command_id,
                )
            )
        )

    def attach(self, command_id: str) -> Command:
        """A command of this shell that runs or is kept, from its first byte."""
        return Command(_run(lambda: self._async.attach(command_id)))

    def reset(self) -> None:
        """End what it runs, and start it afresh in its first directory."""
        _run(self._async.reset)

    def close(self) -> None:
        """End it with every process in it; closing twice is no error."""
        _run(self._async.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _run(lambda: self._async.__aexit__(kind, error, traceback), ending=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"
