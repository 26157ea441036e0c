"""What an exec server says of itself, and the error for what it lacks."""

from dataclasses import dataclass

import grpc

from cloister_api.exec.v1 import exec_pb2

from ._errors import CallError, call_error
from ._status import Details
from ._wire import span

FEATURES = {
    "shells": "shells whose commands stream",
    "terminal": "programs with a terminal",
    "files.edit": "edits with an etag",
    "files.search": "searches for programs",
    "files.watch": "watches of directories",
    "files.resume": "transfers that go on after a loss",
    "files.tree": "directories as one stream",
}
"""What this library asks for before it is used, in words. `tools`, `processes` and `files` are
called at once: without them the server itself says UNIMPLEMENTED."""
_MOST_NAMES, _LONGEST = 256, 128
"""Of what is kept: a sandbox may say more than anybody needs."""


@dataclass(frozen=True)
class ServerInfo:
    """The exec server of a session."""

    version: str
    """Of Cloister, as it was when the sandbox's image was made."""
    boot_id: str
    """New at each start of the server: after it shells, programs and results are gone."""
    api_generation: int
    capabilities: frozenset[str]
    """Names from docs/exec.md; those that this version of the library does not know are there."""

    @classmethod
    def from_proto(cls, message: exec_pb2.RuntimeInfo) -> "ServerInfo":
        """The typed view of the server's message."""
        return cls(
            version=message.version[:_LONGEST],
            boot_id=message.boot_id,
            api_generation=message.api_generation,
            capabilities=frozenset(each[:_LONGEST] for each in message.capabilities[:_MOST_NAMES]),
        )

    def require(self, capability: str) -> None:
        """Raise UnimplementedError unless the server has it; one of FEATURES."""
        if capability not in self.capabilities:
            raise self.lacking(capability)

    def lacking(self, capability: str) -> CallError:
        """The error for what the server lacks."""
        return call_error(
            grpc.StatusCode.UNIMPLEMENTED,
            f"the exec server of this sandbox, version {self.version}, is too old for"
            f" {FEATURES[capability]} ({capability}): use a newer sandbox image",
            Details(reason="NO_CAPABILITY", metadata={"capability": capability}),
        )


@dataclass(frozen=True)
class Activity:
    """What happens in a sandbox."""

    idle_seconds: float
    """Since the last call began or ended; 0 while one runs."""
    running_calls: int
    active_seconds: float
    """For which at least one call has run since the session began."""

    @classmethod
    def from_proto(cls, message: exec_pb2.ActivityResponse) -> "Activity":
        """The typed view of the server's message."""
        return cls(span(message.idle_for), message.running_calls, span(message.active))
