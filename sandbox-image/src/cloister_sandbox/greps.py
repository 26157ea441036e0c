"""Files.Grep: ripgrep's matches as events, in bounded memory whatever is searched."""

import base64
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cloister_api.exec.v1 import exec_pb2

from .entries import shown
from .errors import InvalidField, WrongState
from .failures import failed
from .paths import Roots
from .ripgrep import BadArgument, NotInstalled, Search

MAX_TEXT = 65_536
"""Bytes of one line that are shown."""
_MAX_EVENT = 4 * 1024 * 1024
"""Bytes of one of ripgrep's events; what is longer is counted and left out."""
_MATCHES = b',"submatches":['
_BAD_PATTERN = ("regex parse error", "error parsing glob", "compiled regex exceeds")


class _Events:
    """Splits output into ripgrep's events, one a line.

    Where in the line the matches are is not wanted, and takes many times the line itself: it comes
    last in an event, and is passed over. Only there can these bytes be unescaped.
    """

    def __init__(self) -> None:
        self.too_long = 0
        self._held = bytearray()
        self._seen = 0
        self._passing_over = False

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._take(piece)
            if self._held:
                yield json.loads(self._held)
            self._held, self._seen, self._passing_over = bytearray(), 0, False
        self._take(rest)

    def _take(self, piece: bytes) -> None:
        if self._passing_over:
            return
        self._held += piece
        at = self._held.find(_MATCHES, max(self._seen - len(_MATCHES), 0))
        self._seen = len(self._held)
        if at >= 0:
            self._held[at:] = b"}}"
            self._passing_over = True
        elif len(self._held) > _MAX_EVENT:
            self.too_long += 1
            self._held.clear()
            self._passing_over = True


def grep(
    roots: Roots,
    request: exec_pb2.GrepRequest,
    resolved: str,
    env: Mapping[str, str],
    limit: int,
    seconds: float,
    stopped: Callable[[], bool],
) -> Iterator[exec_pb2.GrepEvent | None]:
    """Lines, then the summary; a None says that nothing came for a moment.

    Raises InvalidField for what ripgrep cannot parse, CallError for a path that cannot be searched.
    """
    directory, name = _open(roots, request.path, resolved)
    try:
        # Searched from an open directory: what is put in its place meanwhile is not.
        search = _start(request, f"/proc/self/fd/{directory}", name, env, seconds)
    finally:
        os.close(directory)
    base = resolved if name == "." else str(Path(resolved).parent)
    events, summary, cut = _Events(), exec_pb2.GrepSummary(), 0
    output = search.output(stopped)
    try:
        for data in output:
            if not data:
                yield None
            for event in events.feed(data):
                line = _line(event, base)
                if line is None:
                    summary.files += event["type"] == "begin"
                    continue
                if not line.is_context and summary.matches == limit:
                    summary.truncated = True
                    break
                summary.matches += not line.is_context
                cut += _shorten(line)
                yield exec_pb2.GrepEvent(line=line)
            if summary.truncated:
                break
    finally:
        output.close()
    summary.truncated |= bool(search.ended)
    summary.warnings.extend(_warnings(search, seconds, events.too_long, cut))
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


def _line(event: dict[str, Any], base: str) -> exec_pb2.GrepLine | None:
    if event["type"] not in ("match", "context"):
        return None
    data = event["data"]
    path = _text(data["path"]).removeprefix("./")
    return exec_pb2.GrepLine(
        path=f"{shown(base).rstrip('/')}/{path}",
        number=data["line_number"] or 0,
        text=_text(data["lines"]).removesuffix("\n"),
        is_context=event["type"] == "context",
    )


def _text(value: dict[str, str]) -> str:
    if "text" in value:
        return value["text"]
    return base64.b64decode(value["bytes"]).decode("utf-8", errors="replace")


def _shorten(line: exec_pb2.GrepLine) -> bool:
    if len(line.text) <= MAX_TEXT:
        return False
    line.text = line.text[:MAX_TEXT]
    return True


def _warnings(search: Search, seconds: float, too_long: int, cut: int) -> list[str]:
    complaint = search.complaint.decode("utf-8", errors="replace").strip()
    if any(each in complaint.lower() for each in _BAD_PATTERN):
        field = "glob" if "parsing glob" in complaint else "pattern"
        raise InvalidField(field, complaint[:1000])
    warnings = complaint.splitlines()[:20]
    if search.ended == "late":
        warnings.append(f"the search ended after {seconds:g} s")
    if too_long:
        warnings.append(f"{too_long} lines were too long to be shown")
    if cut:
        warnings.append(f"{cut} lines were cut to {MAX_TEXT} characters")
    return warnings
