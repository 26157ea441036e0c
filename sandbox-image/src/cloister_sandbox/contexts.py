"""Contexts: each has a shell of its own, and runs its calls one at a time."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import Config
from .errors import Busy, NotFound, place
from .finishing import each_to_its_end, to_its_end
from .lacking import lacked
from .mounts import mounted_files
from .overflow import Overflows
from .paths import Roots, ToolFailure
from .processes import Reaper
from .shell import Cancel, Shell
from .state import ServerState
from .threads import Threads
from .toolset import search, write
from .toolset.bash import bash
from .toolset.read import read, read_at_once
from .toolset.results import ToolResult

log = logging.getLogger(__name__)
MAX_CONTEXTS = 64
_THREADS = 8
_LEAST = 0.001
"""Seconds of a budget that is all but used up; 0 would be none."""
TOOLS = ("bash", "read", "write", "edit", "glob", "grep")


@dataclass
class Context:
    """A shell and the lock that serialises what uses it."""

    shell: Shell
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Contexts:
    """Runs tools; knows every context by its id."""

    def __init__(self, config: Config, state: ServerState, reaper: Reaper) -> None:
        self._config = config
        self._state = state
        self._reaper = reaper
        self._contexts: dict[str, Context] = {}
        # Not those that start and end processes: a tool that takes long must hold up neither.
        self._threads = Threads(_THREADS, thread_name_prefix="tool")
        # A search waits for its ripgrep, which tools may stop: it holds up searches alone.
        self._searches = asyncio.Semaphore(_THREADS)
        self._searching = Threads(_THREADS, thread_name_prefix="grep")
        self._overflows = Overflows()
        kept = Path(self._overflows.directory)
        # What is beneath another root needs no entry of its own, which every path would be
        # compared with.
        beneath = any(kept.is_relative_to(each) for each in (config.workspace, *config.roots))
        self.roots = Roots(
            config.workspace,
            config.roots if beneath else (*config.roots, kept),
            (*config.read_only_roots, kept),
            mounted_files(config.mount_table),
        )

    def get(self, context_id: str) -> Context:
        """The context of this id, made when it is new; raises Busy at the bound."""
        found = self._contexts.get(context_id)
        if found is None:
            if len(self._contexts) >= MAX_CONTEXTS:
                why = f"{MAX_CONTEXTS} contexts are open"
                raise Busy("TOO_MANY_CONTEXTS", why, 1.0, "contexts", MAX_CONTEXTS)
            shell = Shell(
                f"c{len(self._contexts)}", self._config.state_dir, self._reaper, self._overflows
            )
            found = self._contexts[context_id] = Context(shell)
        return found

    async def run(
        self,
        context: Context,
        tool: str,
        given: Mapping[str, Any],
        budget: float,
        cancel: Cancel,
    ) -> ToolResult:
        """Run a tool and return its result; a failure of the tool is a result too.

        Waiting for the calls before it in the context uses the budget (seconds, 0 is none) up.
        """
        began = time.monotonic()
        if not await _turn(context.lock, budget, cancel):
            why = "cancelled before it ran" if cancel.done() else "timed out behind other calls"
            return ToolResult(f"{tool}: {why}", is_error=True)
        try:
            if budget:
                budget = max(_LEAST, budget - (time.monotonic() - began))
            try:
                return await self._run(context, tool, given, budget, cancel)
            except ToolFailure as failure:
                return ToolResult(str(failure), is_error=True)
            except Exception as error:
                if what := lacked(error):
                    return ToolResult(f"{tool}: the sandbox has no more {what}", is_error=True)
                _, line = place(error)
                log.error("tool %s: %s at line %d", tool, type(error).__name__, line)  # noqa: TRY400
                return ToolResult(
                    f"{tool}: the tool failed in a way that was not foreseen; try another way",
                    is_error=True,
                )
        finally:
            context.lock.release()

    async def _run(
        self,
        context: Context,
        tool: str,
        given: Mapping[str, Any],
        budget: float,
        cancel: Cancel,
    ) -> ToolResult:
        env = self._state.environment
        if tool == "bash":
            return await bash(
                context.shell,
                given,
                cwd=str(self._config.workspace),
                env=env,
                budget=budget,
                cancel=cancel,
            )
        if tool == "read":
            at_once = read_at_once(self.roots, given)
            if at_once is not None:
                return at_once
            return await self._in_thread(read, self.roots, given, budget, cancel.done)
        if tool == "write":
            return await self._in_thread(write.write, self.roots, given)
        if tool == "edit":
            return await self._in_thread(write.edit, self.roots, given)
        if tool == "glob":
            return await self._in_thread(search.glob, self.roots, given, budget, cancel.done)
        return await self._grep(given, budget, cancel)

    async def _grep(self, given: Mapping[str, Any], budget: float, cancel: Cancel) -> ToolResult:
        """Search, when there is a turn; waiting for it uses the budget up."""
        began = time.monotonic()
        if not await _turn(self._searches, budget, cancel):
            why = "cancelled before it ran" if cancel.done() else "timed out behind other searches"
            return ToolResult(f"grep: {why}", is_error=True)
        try:
            if budget:
                # In tenths, as it is told when it is over.
                budget = max(_LEAST, budget - round(time.monotonic() - began, 1))
            return await asyncio.get_running_loop().run_in_executor(
                self._searching,
                search.grep,
                self.roots,
                given,
                self._state.environment,
                budget,
                cancel.done,
            )
        finally:
            self._searches.release()

    async def _in_thread(self, tool: Callable[..., ToolResult], *args: Any) -> ToolResult:
        return await asyncio.get_running_loop().run_in_executor(self._threads, tool, *args)

    async def close(self, context_id: str) -> None:
        """End a context and its processes, whether the caller stays or not.

        Raises NotFound when it does not exist.
        """
        found = self._contexts.pop(context_id, None)
        if found is None:
            raise NotFound("UNKNOWN_ID", "no such context", context_id=context_id)
        await to_its_end(found.shell.retire())

    async def close_all(self) -> None:
        """End every context, all at once: what some of them started may take seconds to end."""
        await each_to_its_end(self.close, list(self._contexts))
        self._overflows.close()


async def _turn(room: asyncio.Lock | asyncio.Semaphore, budget: float, cancel: Cancel) -> bool:
    """Wait for a turn, which the caller then releases; False when there was none.

    That is when the budget (seconds, 0 is none) is used up or nobody wants the result any more:
    what is before it may take for ever.
    """
    bound = asyncio.timeout(budget or None)

    def leave(_: Cancel) -> None:
        with contextlib.suppress(RuntimeError):  # it has its turn
            bound.reschedule(0.0)

    try:
        async with bound:
            cancel.add_done_callback(leave)
            try:
                await room.acquire()
            finally:
                cancel.remove_done_callback(leave)
    except TimeoutError:
        return False
    if cancel.done():
        room.release()
        return False
    return True
