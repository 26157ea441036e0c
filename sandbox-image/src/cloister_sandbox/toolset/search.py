"""glob and grep."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..paths import Roots, ToolFailure
from .inputs import Inputs
from .results import ToolResult

MAX_PATHS = 200
MAX_WALK = 500_000
MAX_GREP = 102_400
GREP_SECONDS = 60
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
    matchers = [_compile(each) for each in _braces(pattern)]
    found: list[tuple[float, str]] = []
    for relative, info in _walk(root):
        if any(matcher.fullmatch(relative) for matcher in matchers):
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


def _braces(pattern: str) -> list[str]:
    """Expand {a,b} alternatives, at most 64 of them."""
    expanded = [pattern]
    while True:
        match = next((re.search(r"\{([^{}]*)\}", each) for each in expanded if "{" in each), None)
        if match is None or len(expanded) > 64:
            return expanded
        whole, choices = match.group(0), match.group(1).split(",")
        expanded = [
            each.replace(whole, choice, 1)
            for each in expanded
            for choice in (choices if whole in each else [whole])
        ]


def _compile(pattern: str) -> re.Pattern[str]:
    """A glob as a regular expression: ** spans directories, * and ? do not."""
    out = ""
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            out += "(?:[^/]+/)*"
            at += 3
            continue
        if pattern.startswith("**", at):
            out += ".*"
            at += 2
            continue
        if char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "[" and (end := pattern.find("]", at + 2)) > 0:
            inside = pattern[at + 1 : end].replace("\\", "\\\\")
            out += f"[{'^' + inside[1:] if inside.startswith('!') else inside}]"
            at = end
        else:
            out += re.escape(char)
        at += 1
    try:
        return re.compile(out, re.DOTALL)
    except re.error:
        raise ToolFailure(f"glob: invalid pattern: {pattern}") from None


def grep(roots: Roots, given: Mapping[str, Any], env: Mapping[str, str]) -> ToolResult:
    """Run the grep tool with ripgrep: path:line:text; raises ToolFailure."""
    inputs = Inputs("grep", given, _FIELDS)
    pattern = inputs.text("pattern")
    root = roots.resolve("grep", inputs.optional_text("path") or ".")
    argv = ["rg", "--no-config", "-n", "-H", "--no-heading", "--color=never", "--sort=path"]
    try:
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
    return _collect(process)


def _collect(process: "subprocess.Popen[bytes]") -> ToolResult:
    if process.stdout is None or process.stderr is None:
        raise ToolFailure("grep: rg could not be started")
    with process.stdout, process.stderr:
        data = process.stdout.read(MAX_GREP + 1)
        if len(data) > MAX_GREP:
            process.kill()
            text = data[:MAX_GREP].decode("utf-8", errors="ignore")
            return ToolResult(f"{text}\n[output truncated at {MAX_GREP} bytes]")
        complaint = process.stderr.read(4096).decode("utf-8", errors="replace").strip()
    text = data.decode("utf-8", errors="replace").rstrip("\n")
    if complaint and not text:
        raise ToolFailure(f"grep: rg failed: {complaint}")
    if complaint:
        return ToolResult(f"{text}\n[some files were not searched: {complaint.splitlines()[0]}]")
    return ToolResult(text or NO_MATCHES)
