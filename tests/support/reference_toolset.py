"""The public reference implementation of agent_toolset_20260401, run beside our server.

Its own runner turns what a tool returns or raises into a result, so that what is compared is what a
session would see.
"""

import asyncio
import base64
import importlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from cloister_api.exec.v1 import exec_pb2

if TYPE_CHECKING:
    # What it needs to run servers is not needed to run the reference by itself.
    from support.sandbox_server import Tools


def part(name: str) -> Any:
    """A module of the reference's, when it is needed.

    Its package has 3,000 of them: seconds in every process that only collects the tests.
    """
    return importlib.import_module(f"anthropic.lib.tools.{name}")


@dataclass(frozen=True)
class Answer:
    """What a session sees of one call; `media` is set where it is no text."""

    text: str
    is_error: bool
    media: str = ""

    def named(self, root: Path) -> "Answer":
        """The same with the workspace's own path replaced."""
        return Answer(self.text.replace(str(root), "{w}"), self.is_error, self.media)


class Reference:
    """The reference tools on a workspace of their own."""

    def __init__(self, root: Path, extra: Path, env: dict[str, str]) -> None:
        self.root = root
        toolset = part("agent_toolset")
        self._call_tool = part("_beta_session_runner").SessionToolRunner._call_tool
        self._loop = asyncio.Runner()
        context = toolset.AgentToolContext(
            workdir=root,
            allowed_roots=[extra],
            read_only_roots=[extra / "uploads"],
            env={**env, "HOME": str(root)},
        )
        self._tools = {tool.name: tool for tool in toolset.beta_agent_toolset_20260401(context)}

    def call(self, tool: str, **given: Any) -> Answer:
        """Run one tool as the reference runner does."""
        return self.run(self._tools[tool], given)

    def run(self, tool: Any, given: dict[str, Any]) -> Answer:
        """Run anything that the reference runner takes for a tool."""
        event: Any = SimpleNamespace(name=tool.name, id="call", type="agent.tool_use")
        runner: Any = None
        called = self._call_tool(runner, tool, event, given)
        result, _ = self._loop.run(called)
        (block,) = result["content"]
        is_error = result["is_error"] is True
        if block["type"] == "text":
            return Answer(block["text"], is_error)
        source = cast("dict[str, str]", block["source"])
        return Answer(source["data"], is_error, source["media_type"])

    def dispatch(self, commands: list[str]) -> None:
        """Run commands of bash in the loop in which its runner calls the tools of a session."""
        self._loop.run(self._dispatch(commands))

    def dispatch_and_leave(
        self, command: str, begun: Callable[[], None], go_on: Callable[[], None]
    ) -> None:
        """The same for one command, whose caller leaves when `begun` returns; `go_on` is next."""
        self._loop.run(self._dispatch([command], begun, go_on))

    async def _dispatch(self, commands: list[str], *leaving: Callable[[], None]) -> None:
        module = part("_beta_session_runner")
        send, receive = module.anyio.create_memory_object_stream(len(commands))
        results, unread = module.anyio.create_memory_object_stream(1)

        async def execute(event: Any, _: object) -> None:
            await self._call_tool(runner, self._tools["bash"], event, event.input)

        runner: Any = SimpleNamespace(
            _recv_work=receive,
            _send_results=results,
            _answered=set(),
            _in_terminated_thread=lambda _: False,
            _execute=execute,
        )
        for number, command in enumerate(commands):
            given = {"command": command}
            kind = "agent.tool_use"
            event = SimpleNamespace(name="bash", id=str(number), type=kind, input=given)
            send.send_nowait((event, None))
        send.close()
        with receive, unread:
            async with module.anyio.create_task_group() as group:
                group.start_soon(module.SessionToolRunner._dispatch_loop, runner)
                if leaving:
                    begun, go_on = leaving
                    await asyncio.to_thread(begun)
                    group.cancel_scope.cancel()
                    go_on()

    def end(self) -> None:
        """Close its tools, as at the end of a session."""
        self._loop.run(self._close())

    def close(self) -> None:
        """End its shell, and what it leaves behind."""
        self.end()
        self._loop.close()
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if f"HOME={self.root}".encode() in (directory / "environ").read_bytes().split(
                    b"\0"
                ):
                    os.kill(int(directory.name), signal.SIGKILL)

    async def _close(self) -> None:
        for tool in self._tools.values():
            await part("_beta_functions").aclose_runnable_tool(tool)


@dataclass
class Both:
    """One input, two implementations."""

    tools: "Tools"
    root: Path
    extra: Path
    reference: Reference
    context: str

    def result(self, tool: str, **given: Any) -> exec_pb2.CallResult:
        """Ours, as it comes over the wire."""
        return self.tools.call(tool, context_id=self.context, **given)

    def ours(self, tool: str, **given: Any) -> Answer:
        """What a session sees of ours."""
        result = self.result(tool, **given)
        (block,) = result.content
        if block.HasField("text"):
            return Answer(block.text, result.is_error).named(self.root)
        blob = block.image if block.HasField("image") else block.document
        data = base64.standard_b64encode(blob.data).decode()
        return Answer(data, result.is_error, blob.media_type)

    def theirs(self, tool: str, **given: Any) -> Answer:
        """What a session sees of the reference."""
        return self.reference.call(tool, **given).named(self.reference.root)

    def same(self, tool: str, **given: Any) -> Answer:
        """The answer that both give; fails unless it is the same one."""
        ours, theirs = self.ours(tool, **given), self.theirs(tool, **given)
        assert ours == theirs
        return ours

    def says(self, text: str, tool: str, **given: Any) -> None:
        """Both answer with this text, which is no error."""
        assert self.same(tool, **given) == Answer(text, False)

    def fails(self, text: str, tool: str, **given: Any) -> None:
        """Both answer with this error."""
        assert self.same(tool, **given) == Answer(text, True)

    def bash(self, command: str) -> str:
        """The text of a command that must succeed in ours."""
        answer = self.ours("bash", command=command)
        assert not answer.is_error, answer.text
        return answer.text

    def make(self, build: Callable[[Path], object]) -> None:
        """Make the same files in both workspaces."""
        for root in (self.root, self.reference.root):
            build(root)

    def write(self, name: str, data: bytes) -> None:
        """The same file in both."""

        def build(root: Path) -> None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        self.make(build)


@contextmanager
def side_by_side(
    tools: "Tools", workspace: Path, other: Path, context: str, env: dict[str, str]
) -> Iterator[Both]:
    """Ours in an emptied `workspace`, and the reference in `other`, with the same environment."""
    extra = workspace.parent / "extra"
    reference = Reference(other, extra, env)
    try:
        yield Both(tools, workspace, extra, reference, context)
    finally:
        reference.close()
        closing = exec_pb2.CloseContextRequest(context_id=context)
        tools.stub.CloseContext(closing, timeout=20)
