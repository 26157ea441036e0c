"""glob and grep."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..entries import shown
from ..finds import find
from ..matches import Binary, Line, Matches
from ..paths import Roots, ToolFailure
from ..ripgrep import BadArgument, NotInstalled, Search
from ..walks import TooLarge
from .inputs import Inputs
from .patterns import BadPattern, Pattern
from .results import ToolResult

MAX_PATHS = 200
MAX_GREP = 102_400
"""Characters; the reference calls them bytes."""
SEARCH_SECONDS = 60
NO_MATCHES = "no matches"
_FIELDS = frozenset({"pattern", "path"})


def glob(
    roots: Roots, given: Mapping[str, Any], budget: float, stopped: Callable[[], bool]
) -> ToolResult:
    """Run the glob tool: matching paths, newest first; raises ToolFailure.

    `budget` and `stopped` are those of `grep`.
    """
    deadline = time.monotonic() + min(budget or SEARCH_SECONDS, SEARCH_SECONDS)
    inputs = Inputs("glob", given, _FIELDS)
    pattern = inputs.text("pattern")
    if pattern.startswith("/"):
        raise ToolFailure(
            "glob: absolute pattern not permitted; pass a relative pattern (and optionally path)"
        )
    if ".." in pattern.split("/"):
        raise ToolFailure("glob: '..' is not permitted in the pattern")
    root = roots.resolve("glob", inputs.optional_text("path") or ".")
    try:
        wanted = Pattern(pattern)
    except BadPattern as error:
        raise ToolFailure(f"glob: invalid pattern: {error}") from None
    try:
        matches, total = find(
            roots, root, wanted, MAX_PATHS, lambda: stopped() or time.monotonic() > deadline
        )
    except TooLarge as bound:
        raise ToolFailure(f"glob: {bound} below {root}; pass a narrower path") from None
    if not matches:
        return ToolResult(NO_MATCHES)
    lines = [match.path for match in matches]
    if total > MAX_PATHS:
        lines.append(f"[{total - MAX_PATHS} more matches, older than these]")
    return ToolResult("\n".join(lines))


def grep(
    roots: Roots,
    given: Mapping[str, Any],
    env: Mapping[str, str],
    budget: float,
    stopped: Callable[[], bool],
) -> ToolResult:
    """Run the grep tool with ripgrep: path:line:text; raises ToolFailure.

    `budget` is in seconds, 0 is the tool's own bound; `stopped` tells that nobody wants the result.
    """
    inputs = Inputs("grep", given, _FIELDS)
    pattern = inputs.text("pattern")
    root = roots.resolve("grep", inputs.optional_text("path") or ".")
    arguments = ["--json", "--sort=path", "-e", pattern]
    seconds = min(budget or SEARCH_SECONDS, SEARCH_SECONDS)
    try:
        search = Search([*arguments, "--", root], str(roots.workspace), env, seconds)
    except NotInstalled:
        raise ToolFailure("grep: ripgrep is not installed in this image") from None
    except BadArgument:
        raise ToolFailure("grep: embedded null byte") from None
    text, binary = "", ""
    with (
        contextlib.closing(search.output(stopped)) as output,
        Matches(roots, root, root, lambda: stopped() or search.late) as matches,
    ):
        found: list[str] = []
        size = 0
        for data in output:
            for each in matches.feed(data):
                if each.path == binary:
                    continue
                if isinstance(each, Binary) or b"\0" in each.text:
                    binary = each.path
                found.append(_printed(each))
                size += len(found[-1])
                if size > MAX_GREP:
                    return ToolResult(_cut("".join(found)))
        text = "".join(found)
    if search.ended:
        late = search.ended == "late"
        note = f"grep: timed out after {seconds:g}s" if late else "grep: cancelled"
        return ToolResult("\n".join(filter(None, (text.rstrip("\n"), note))), is_error=True)
    words = matches.complaints(search.complaint, more=search.complained_more)
    if words and not text:
        raise ToolFailure("grep: rg failed: " + "\n".join(words))
    notes = [f"[{each}]" for each in matches.warnings()]
    if words:
        notes.append(f"[some files were not searched: {words[0]}]")
    if notes:
        return ToolResult((text or f"{NO_MATCHES}\n") + "\n".join(notes))
    return ToolResult(text or NO_MATCHES)


def _printed(found: Line | Binary) -> str:
    """As ripgrep prints it for people."""
    path = shown(found.path)
    if isinstance(found, Binary):
        return (
            f"{path}: WARNING: stopped searching binary file after match "
            f'(found "\\0" byte around offset {found.offset})\n'
        )
    null = found.text.find(b"\0")
    if null >= 0:
        at = found.offset + null
        return f'{path}: binary file matches (found "\\0" byte around offset {at})\n'
    text = found.text.decode("utf-8", errors="replace").removesuffix("\n")
    return f"{path}:{found.number}:{text}\n"


def _cut(text: str) -> str:
    return f"{text[:MAX_GREP]}\n[output truncated at {MAX_GREP} bytes]"
