"""The message that starts a program."""

import uuid
from collections.abc import Mapping, Sequence

from cloister_api.exec.v1 import exec_pb2

from ._numbers import UINT32, duration, whole
from ._outcomes import OutputPolicy


def start_request(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str] | None,
    stdin: bool,
    terminal: tuple[int, int] | None,
    timeout: float | None,
    separate_stderr: bool,
    output: OutputPolicy | None,
    process_id: str | None,
    labels: Mapping[str, str] | None,
) -> exec_pb2.StartRequest:
    """The message that starts a program; see AsyncSession.start."""
    request = exec_pb2.StartRequest(
        process_id=process_id or uuid.uuid4().hex,
        argv=argv,
        cwd=cwd,
        env=dict(env or {}),
        stdin=stdin,
        output=(output or OutputPolicy()).to_proto(
            separate_stderr=separate_stderr and terminal is None
        ),
        labels=dict(labels or {}),
        detach=True,
    )
    if terminal is not None:
        columns, rows = terminal
        request.terminal.CopyFrom(terminal_size(columns, rows))
    if timeout is not None:
        request.timeout.CopyFrom(duration("timeout", timeout))
    return request


def terminal_size(columns: int, rows: int) -> exec_pb2.TerminalSize:
    """The size of a terminal, in characters; raises ValueError and TypeError."""
    return exec_pb2.TerminalSize(
        columns=whole("columns", columns, most=UINT32), rows=whole("rows", rows, most=UINT32)
    )
