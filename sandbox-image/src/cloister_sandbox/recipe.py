"""What the Environment asks of a pod before it is warm: variables, files, a setup script."""

import asyncio
import json
import os
import resource
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .processes import Reaper
from .shell import Cancel, Shell, ShellError

_TAIL = 500
_LIMITS = {"fileBytes": resource.RLIMIT_FSIZE, "processes": resource.RLIMIT_NPROC}


class RecipeError(Exception):
    """The recipe cannot be carried out; the message is for the Environment's author."""


@dataclass(frozen=True)
class Copy:
    """A file to put into place."""

    source: str
    path: str
    mode: int


@dataclass(frozen=True)
class Recipe:
    """recipe.json, read."""

    env: Mapping[str, str]
    setup: str
    setup_timeout: float
    copies: tuple[Copy, ...]
    limits: Mapping[str, int] = field(default_factory=dict)
    """What this server and all that it starts may use at most; see `limit`."""
    trees: tuple[str, ...] = ()
    """Directories whose files the operator brings."""

    @classmethod
    def load(cls, directory: Path) -> "Recipe":
        """Read recipe.json from the directory; without one there is nothing to do."""
        try:
            text = (directory / "recipe.json").read_text()
        except FileNotFoundError:
            return cls({}, "", 0.0, ())
        except (OSError, ValueError) as error:
            raise RecipeError(f"recipe.json cannot be read: {error}") from None
        try:
            raw: Mapping[str, Any] = json.loads(text)
            return cls(
                env=dict(raw.get("env", {})),
                setup=raw.get("setup") or "",
                setup_timeout=float(raw.get("setupTimeoutSeconds", 600)),
                copies=tuple(Copy(**each) for each in raw.get("copies", [])),
                limits={name: int(value) for name, value in raw.get("limits", {}).items()},
                trees=tuple(str(each["path"]) for each in raw.get("trees", [])),
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise RecipeError(f"recipe.json cannot be read: {error}") from None


def limit(limits: Mapping[str, int]) -> None:
    """Bound this process and all that it starts, for good: a tool can set no limit higher.

    `fileBytes` is the largest file, `processes` the processes and threads of this user; other names
    are those of a newer operator. Raises RecipeError when the kernel refuses.
    """
    for name, which in _LIMITS.items():
        if name not in limits:
            continue
        _, hardest = resource.getrlimit(which)
        value = limits[name]
        if hardest != resource.RLIM_INFINITY:
            value = min(value, hardest)
        try:
            resource.setrlimit(which, (value, value))
        except (OSError, ValueError) as error:
            raise RecipeError(f"the limit {name} cannot be set: {error}") from None


def kept(path: str, roots: Sequence[Path]) -> bool:
    """Whether anything lies there, below one of the roots, be it a link that leads nowhere."""
    below = any(Path(path).is_relative_to(root) for root in roots)
    return below and os.path.lexists(path)


def place(path: str, mode: int, content: bytes) -> None:
    """Write a file with exactly this mode, making its parents; raises OSError."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that tools of an earlier pod have not foreseen: they may leave anything anywhere.
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode & 0o777)
        partial.rename(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


async def carry_out(
    recipe: Recipe,
    directory: Path,
    workspace: Path,
    state_dir: Path,
    env: Mapping[str, str],
    reaper: Reaper,
    *,
    kept_roots: Sequence[Path] = (),
    bring: Callable[[Sequence[str]], Awaitable[None]],
    proof: Callable[[], Awaitable[None]],
) -> None:
    """Copy the files, wait for those that others bring, then run the setup script, once it may.

    Raises RecipeError with what went wrong.

    `kept_roots`: leave files that lie there already as tools have made them; `bring`: returns when
    these directories have got their files; `proof`: returns when the network is known to be closed.
    """
    for each in recipe.copies:
        if kept(each.path, kept_roots):
            continue
        try:
            content = await asyncio.to_thread((directory / each.source).read_bytes)
            await asyncio.to_thread(place, each.path, each.mode, content)
        except OSError as error:
            raise RecipeError(f"file {each.path} cannot be placed: {error.strerror}") from None
    missing = [each for each in recipe.trees if not kept(each, kept_roots)]
    if missing:
        await bring(missing)
    if not recipe.setup:
        return
    await proof()
    shell = Shell("setup", state_dir, reaper)
    try:
        await shell.open(str(workspace), env)
        never: Cancel = asyncio.get_running_loop().create_future()
        finished = await shell.run(recipe.setup, recipe.setup_timeout, never)
    except ShellError as error:
        raise RecipeError(f"the setup script could not start: {error}") from None
    finally:
        await shell.retire()
    if finished.timed_out:
        raise RecipeError(f"the setup script took longer than {recipe.setup_timeout:g} s")
    if finished.code:
        tail = finished.output.strip()[-_TAIL:]
        raise RecipeError(f"the setup script ended with exit code {finished.code}: {tail}")
