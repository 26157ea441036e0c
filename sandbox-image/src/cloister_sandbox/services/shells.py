"""cloister.exec.v1.Shells."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

from ..commands import Script
from ..config import Config
from ..errors import InvalidField
from ..jobs import Job
from ..shells import Shells, Slot
from ..state import ServerState
from .common import MAX_ID, concluding, require_claimed, require_length, sendable, unary
from .events import CONCLUSIONS, follow, policy, seconds
from .starting import directory, variables

_DETACH = {
    exec_pb2.ON_TIMEOUT_UNSPECIFIED: False,
    exec_pb2.ON_TIMEOUT_KILL: False,
    exec_pb2.ON_TIMEOUT_DETACH: True,
}


class ShellsService(exec_pb2_grpc.ShellsServicer):
    """Thin: checks the request, finds the shell, follows the command."""

    def __init__(self, config: Config, state: ServerState, shells: Shells) -> None:
        self._config = config
        self._state = state
        self._shells = shells

    @unary
    async def Open(self, request: exec_pb2.OpenShellRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        require_length("shell_id", request.shell_id, MAX_ID)
        cwd = directory(self._config.workspace, request.cwd)
        if "\0" in cwd:
            raise InvalidField("cwd", "has a NUL character")
        env = variables(self._state.environment, request.env)
        return _shell(await self._shells.open(request.shell_id, cwd, env, _digest(request)))

    @concluding(*CONCLUSIONS)
    async def Run(self, request: exec_pb2.RunRequest, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002, N802
        known = self._shells.knows(request.shell_id, request.command_id)
        require_claimed(self._state, known=known)
        require_length("command_id", request.command_id, MAX_ID)
        if request.attach_only:
            job, replayed = self._shells.command(request.shell_id, request.command_id), True
        else:
            job, replayed = self._run(request)
        following = follow(
            job, offset=request.resume_offset, replayed=replayed, leave_when_detached=True
        )
        async with aclosing(following) as events:
            async for event in events:
                yield event

    def _run(self, request: exec_pb2.RunRequest) -> tuple[Job, bool]:
        if request.on_timeout not in _DETACH:
            raise InvalidField("on_timeout", "is unknown")
        script = Script(
            text=request.script,
            timeout=seconds("timeout", request.timeout),
            detach=_DETACH[request.on_timeout],
            policy=policy(request.output, one_stream=True),
        )
        payload = exec_pb2.RunRequest()
        payload.CopyFrom(request)
        payload.ClearField("resume_offset")
        return self._shells.run(request.shell_id, request.command_id, _digest(payload), script)

    @unary
    async def Reset(self, request: exec_pb2.ResetShellRequest, context: Any) -> Any:  # noqa: ARG002, N802
        require_claimed(self._state)
        return _shell(await self._shells.reset(request.shell_id))

    @unary
    async def Close(self, request: exec_pb2.CloseShellRequest, context: Any) -> Any:  # noqa: ARG002, N802
        await self._shells.close(request.shell_id)
        return exec_pb2.CloseShellResponse()

    @unary
    async def List(self, request: exec_pb2.ListShellsRequest, context: Any) -> Any:  # noqa: ARG002, N802
        return exec_pb2.ListShellsResponse(shells=[_shell(slot) for slot in self._shells.all()])


def _digest(request: exec_pb2.OpenShellRequest | exec_pb2.RunRequest) -> bytes:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).digest()


def _shell(slot: Slot) -> exec_pb2.Shell:
    busy = slot.running is not None
    return exec_pb2.Shell(
        shell_id=slot.id,
        state=exec_pb2.Shell.STATE_BUSY if busy else exec_pb2.Shell.STATE_READY,
        cwd=sendable(slot.shell.cwd),
        generation=slot.generation,
        running_command_id=slot.running.id if slot.running is not None else "",
    )
