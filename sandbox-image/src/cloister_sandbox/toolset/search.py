"""glob and grep."""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..paths import Roots, ToolFailure
from ..signals import unblocked
from .inputs import Inputs
from .patterns import BadPattern, Pattern
from .results import ToolResult

MAX_PATHS = 200
MAX_WALK = 500_000
MAX_GREP = 102_400
GREP_SECONDS = 60
_COMPLAINT = 4096
_LOOK = 0.2
"""Seconds between looks at whether anybody still wants the result."""
NO_MATCHES = "no matches"
_FIELDS = frozenset({"pattern", "path"})


def glob(roots: Roots, given: Mapping[str, Any]) -> ToolResult:
    """Run the glob tool: matching paths, newest first; raises ToolFailure."""
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
    found: list[tuple[float, str]] = []
    for relative, info in _walk(root):
        if wanted.matches(relative):
            path = str(Path(root) / relative)
            if roots.holding(os.path.realpath(path)) is not None:
                found.append((info.st_mtime, path))
    if not found:
        return ToolResult(NO_MATCHES)
    found.sort(key=lambda each: (-each[0], each[1]))
    lines = [path for _, path in found[:MAX_PATHS]]
    if len(found) > MAX_PATHS:
        lines.append(f"[{len(found) - MAX_PATHS} more matches, older than these]")
    return ToolResult("\n".join(lines))


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Every entry below root with its relative path; links to directories are not entered."""
    pending = [""]
    seen = 0
    while pending:
        below = pending.pop()
        try:
            entries = list(os.scandir(Path(root) / below))
        except OSError:
            continue
        for entry in entries:
            seen += 1
            if seen > MAX_WALK:
                raise ToolFailure(
                    f"glob: more than {MAX_WALK} entries below {root}; pass a narrower path"
                )
            relative = f"{below}/{entry.name}" if below else entry.name
            try:
                info = entry.stat(follow_symlinks=False)
                directory = entry.is_dir(follow_symlinks=False)
            except OSError:
                continue
            yield relative, info
            if directory:
                pending.append(relative)


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
    argv = ["rg", "--no-config", "-n", "-H", "--no-heading", "--color=never", "--sort=path"]
    try:
        with unblocked():
            process = subprocess.Popen(
                [*argv, "-e", pattern, "--", root],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=str(roots.workspace),
                env=dict(env),
                start_new_session=True,
            )
    except OSError:
        raise ToolFailure("grep: ripgrep is not installed in this image") from None
    except ValueError:
        raise ToolFailure("grep: embedded null byte") from None
    process.returncode = 0  # the reaper waits for it, the Popen object must not
    seconds = min(budget or GREP_SECONDS, GREP_SECONDS)
    found, complaint, why = _collect(process, time.monotonic() + seconds, stopped)
    text = found[:MAX_GREP].decode("utf-8", errors="ignore" if why else "replace").rstrip("\n")
    if why == "full":
        return ToolResult(f"{text}\n[output truncated at {MAX_GREP} bytes]")
    if why:
        note = "grep: cancelled" if why == "stopped" else f"grep: timed out after {seconds:g}s"
        return ToolResult("\n".join(filter(None, (text, note))), is_error=True)
    words = complaint.decode("utf-8", errors="replace").strip()
    if words and not text:
        raise ToolFailure(f"grep: rg failed: {words}")
    if words:
        return ToolResult(f"{text}\n[some files were not searched: {words.splitlines()[0]}]")
    return ToolResult(text or NO_MATCHES)


def _collect(
    process: "subprocess.Popen[bytes]", deadline: float, stopped: Callable[[], bool]
) -> tuple[bytes, bytes, str]:
    """Standard output, the beginning of standard error, and why reading ended early, if it did.

    Both pipes are read at once: complaints about thousands of files must not block the search.
    """
    kept = {"stdout": bytearray(), "stderr": bytearray()}
    bounds = {"stdout": MAX_GREP + 1, "stderr": _COMPLAINT}
    why = ""
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as pipes:
        for name in kept:
            pipe = pipes.enter_context(getattr(process, name))
            selector.register(pipe, selectors.EVENT_READ, name)
        while selector.get_map() and not why:
            for key, _ in selector.select(timeout=_LOOK):
                data = os.read(key.fd, 65_536)
                if not data:
                    selector.unregister(key.fileobj)
                room = bounds[key.data] - len(kept[key.data])
                kept[key.data] += data[:room]
            if len(kept["stdout"]) > MAX_GREP:
                why = "full"
            elif stopped():
                why = "stopped"
            elif time.monotonic() > deadline:
                why = "late"
        if why:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    return bytes(kept["stdout"]), bytes(kept["stderr"]), why
