"""Files.Grep: ripgrep's matches as events, in bounded memory whatever is searched."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cloister_api.exec.v1 import exec_pb2

from .entries import shown
from .errors import InvalidField, WrongState
from .failures import failed
from .matches import Line, Matches
from .paths import Roots
from .ripgrep import BadArgument, NotInstalled, Search

MAX_TEXT = 65_536
"""Bytes of one line that are shown."""
_BAD_PATTERN = (
    "regex parse error",
    "error parsing glob",
    "compiled regex exceeds",
    "is not allowed in a regex",
)


def grep(
    roots: Roots,
    request: exec_pb2.GrepRequest,
    resolved: str,
    env: Mapping[str, str],
    limit: int,
    seconds: float,
    stopped: Callable[[], bool],
) -> Iterator[exec_pb2.GrepEvent | None]:
    """Lines, then the summary; a None says that none came for a moment.

    Raises InvalidField for what ripgrep cannot parse, CallError for a path that cannot be searched.
    """
    directory, name = _open(roots, request.path, resolved)
    try:
        # Searched from an open directory: what is put in its place meanwhile is not.
        search = _start(request, f"/proc/self/fd/{directory}", name, env, seconds)
    finally:
        os.close(directory)
    base = resolved if name == "." else str(Path(resolved).parent)
    summary, cut = exec_pb2.GrepSummary(), 0
    output = search.output(stopped)
    with Matches(roots, resolved, base, lambda: stopped() or search.late) as matches:
        try:
            for data in output:
                found = False
                for line in matches.feed(data):
                    if not isinstance(line, Line):
                        continue
                    found = True
                    if not line.is_context and summary.matches == limit:
                        summary.truncated = True
                        break
                    summary.matches += not line.is_context
                    message = _message(line)
                    cut += _shorten(message)
                    yield exec_pb2.GrepEvent(line=message)
                if summary.truncated:
                    break
                if not found:  # the thread's turn ends: others wait for it
                    yield None
        finally:
            output.close()
    summary.files = matches.files
    ended_early = summary.truncated or bool(search.ended)
    matches.complete |= ended_early
    summary.truncated = ended_early or not matches.complete
    summary.warnings.extend(_warnings(search, matches, seconds, cut))
    yield exec_pb2.GrepEvent(summary=summary)


def _open(roots: Roots, path: str, resolved: str) -> tuple[int, str]:
    """The directory to search in, open, and what to search there."""
    try:
        if Path(resolved).is_dir():
            return roots.directory(resolved), "."
        with roots.parent(resolved) as (above, name):
            os.stat(name, dir_fd=above, follow_symlinks=False)
            return os.dup(above), f"./{name}"
    except OSError as error:
        raise failed(path, error) from None


def _start(
    request: exec_pb2.GrepRequest, cwd: str, name: str, env: Mapping[str, str], seconds: float
) -> Search:
    arguments = ["--json", "--sort=path"]
    if request.ignore_case:
        arguments.append("--ignore-case")
    if request.context_lines:
        arguments.append(f"--context={request.context_lines}")
    if request.glob:
        arguments.append(f"--glob={request.glob}")
    if request.include_ignored:
        arguments += ["--no-ignore", "--hidden"]
    try:
        return Search([*arguments, "-e", request.pattern, "--", name], cwd, env, seconds)
    except NotInstalled:
        raise WrongState("NO_RIPGREP", "ripgrep is not installed in this image") from None
    except BadArgument:
        raise InvalidField("pattern", "must not contain a null byte") from None


def _message(line: Line) -> exec_pb2.GrepLine:
    return exec_pb2.GrepLine(
        path=shown(line.path),
        number=line.number,
        text=line.text.decode("utf-8", errors="replace").removesuffix("\n"),
        is_context=line.is_context,
    )


def _shorten(line: exec_pb2.GrepLine) -> bool:
    if len(line.text) <= MAX_TEXT:
        return False
    line.text = line.text[:MAX_TEXT]
    return True


def _warnings(search: Search, matches: Matches, seconds: float, cut: int) -> list[str]:
    complaint = search.complaint
    # Of a search that came to its end it is a file that has such a name.
    if not matches.complete and any(each in complaint.lower() for each in _BAD_PATTERN):
        field = "glob" if "parsing glob" in complaint else "pattern"
        raise InvalidField(field, complaint[:1000])
    warnings = matches.complaints(complaint, more=search.complained_more)[:20]
    if search.ended == "late":
        warnings.append(f"the search ended after {seconds:g} s")
    warnings += matches.warnings()
    if cut:
        warnings.append(f"{cut} lines were cut to {MAX_TEXT} characters")
    return warnings
