"""What calls take and give: plain, frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cloister_api.exec.v1 import exec_pb2
from cloister_api.sessions.v1 import sessions_pb2

from ._wire import moment, span, word


@dataclass(frozen=True)
class File:
    """A file that a new session starts with."""

    path: str
    """Absolute, below /workspace or /mnt/session/uploads."""
    content: bytes
    mode: int = 0o644
    """Permission bits."""


@dataclass(frozen=True)
class Blob:
    """An image or a document that a tool answered with."""

    media_type: str
    data: bytes = field(repr=False)


Block = str | Blob
"""One part of a tool's answer: text, or a Blob."""


@dataclass(frozen=True)
class ToolResult:
    """What a tool answered."""

    text: str
    """All text of the answer; never empty unless the answer is only a blob."""
    is_error: bool
    """Whether the model should see a failure."""
    blocks: tuple[Block, ...]
    """The answer as the server gave it."""
    exit_code: int | None = None
    """How the command ended; 128 plus the signal's number when one killed it. bash only."""
    timed_out: bool = False
    cancelled: bool = False
    cwd: str | None = None
    """The shell's working directory afterwards. bash only."""
    seconds: float | None = None
    """How long the command ran. bash only."""
    total_bytes: int | None = None
    """Bytes the command printed, when some were left out."""
    omitted_bytes: int = 0
    """Bytes that were left out of the answer."""
    spool_path: str = ""
    """File of the sandbox with what was left out, for `read`; empty when there is none."""
    state_lost: bool = False
    """Whether the shell was replaced: its variables and background jobs are gone."""
    replayed: bool = False
    """Whether this is the kept result of an earlier call with the same request id."""

    @property
    def truncated(self) -> bool:
        """Whether output was left out."""
        return self.omitted_bytes > 0

    @classmethod
    def from_proto(cls, result: exec_pb2.CallResult) -> "ToolResult":
        """The typed view of the server's message."""
        blocks = tuple(_block(each) for each in result.content)
        fields: dict[str, Any] = {}
        if result.HasField("exit"):
            end = result.exit
            fields = {
                "exit_code": 128 + end.signal if end.HasField("signal") else end.code,
                "timed_out": end.reason == exec_pb2.ExitInfo.REASON_TIMED_OUT,
                "cancelled": end.reason == exec_pb2.ExitInfo.REASON_CANCELLED,
                "cwd": end.cwd,
                "seconds": span(end.wall),
            }
        if result.HasField("truncation"):
            fields["total_bytes"] = result.truncation.total_bytes
            fields["omitted_bytes"] = result.truncation.omitted_bytes
            fields["spool_path"] = result.truncation.spool_path
        return cls(
            text="\n".join(each for each in blocks if isinstance(each, str)),
            is_error=result.is_error,
            blocks=blocks,
            state_lost=result.state_lost,
            replayed=result.replayed,
            **fields,
        )


def _block(block: exec_pb2.Block) -> Block:
    kind = block.WhichOneof("block")
    if kind == "image":
        return Blob(block.image.media_type, block.image.data)
    if kind == "document":
        return Blob(block.document.media_type, block.document.data)
    return block.text


@dataclass(frozen=True)
class Credentials:
    """A session's client identity, PEM. Whoever holds it is that session's worker."""

    certificate_pem: bytes = field(repr=False)
    private_key_pem: bytes = field(repr=False)
    ca_pem: bytes = field(repr=False)
    """The CA that signed the exec server's certificate."""
    expires_at: datetime

    @classmethod
    def from_proto(cls, message: sessions_pb2.Credentials) -> "Credentials":
        """The typed view of the server's message."""
        return cls(
            message.certificate_pem,
            message.private_key_pem,
            message.ca_pem,
            moment(message.expires_at),
        )


@dataclass(frozen=True)
class SessionInfo:
    """A session as the operator knows it."""

    namespace: str
    name: str
    uid: str
    environment: str
    phase: str
    """`Pending`, `Running`, `Suspended`, `Failed` or `Terminated`."""
    reason: str
    message: str
    pod_name: str
    endpoint: str
    """host:port of the exec server inside the cluster."""
    server_name: str
    """The name that the exec server's certificate must prove."""
    recipe_hash: str
    created_at: datetime | None
    expires_at: datetime | None
    """When policy ends the session at the latest."""
    restarts: int = 0
    """How often it got a new sandbox on its workspace; its shells start afresh with each."""
    queue_position: int = 0
    """Its number in line while it waits for another session's end; the first is 1."""

    @property
    def ended(self) -> bool:
        """Whether nothing can run in it any more."""
        return self.phase in ("Failed", "Terminated")

    @property
    def suspended(self) -> bool:
        """Whether it has no sandbox, and may get one again."""
        return self.phase == "Suspended"

    @classmethod
    def from_proto(cls, message: sessions_pb2.Session) -> "SessionInfo":
        """The typed view of the server's message."""
        phase = word(sessions_pb2.Session.Phase, message.phase, "PHASE_").capitalize()
        return cls(
            namespace=message.namespace,
            name=message.name,
            uid=message.uid,
            environment=message.environment,
            phase=phase,
            reason=message.reason,
            message=message.message,
            pod_name=message.pod_name,
            endpoint=message.endpoint,
            server_name=message.server_name,
            recipe_hash=message.recipe_hash,
            created_at=_time(message.created_at, present=message.HasField("created_at")),
            expires_at=_time(message.expires_at, present=message.HasField("expires_at")),
            restarts=message.restarts,
            queue_position=message.queue_position,
        )


@dataclass(frozen=True)
class EgressDecision:
    """Connections of a session that the egress gateways decided alike."""

    host: str
    """As the session asked for it; empty for what was no name."""
    port: int
    allowed: bool
    reason: str
    """`Allowed`, or why not, such as `HostNotAllowed`."""
    count: int
    first: datetime
    last: datetime
    bytes_sent: int
    """Of connections that ended."""
    bytes_received: int

    @classmethod
    def from_proto(cls, message: sessions_pb2.EgressDecision) -> "EgressDecision":
        """The typed view of the server's message."""
        return cls(
            host=message.host,
            port=message.port,
            allowed=message.allowed,
            reason=message.reason,
            count=message.count,
            first=moment(message.first),
            last=moment(message.last),
            bytes_sent=message.bytes_sent,
            bytes_received=message.bytes_received,
        )


@dataclass(frozen=True)
class EnvironmentInfo:
    """An Environment and the state of its pool."""

    namespace: str
    name: str
    ready: bool
    reason: str
    """Why it is not ready, one CamelCase word."""
    message: str
    image: str
    """Empty when it is the installation's default."""
    pool_size: int
    pool_ready: int
    recipe_hash: str

    @classmethod
    def from_object(cls, found: Mapping[str, Any]) -> "EnvironmentInfo":
        """The typed view of the custom resource."""
        meta, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
        conditions: list[dict[str, str]] = status.get("conditions") or []
        ready = next((each for each in conditions if each.get("type") == "Ready"), {})
        pool = status.get("pool") or {}
        return cls(
            namespace=meta["namespace"],
            name=meta["name"],
            ready=ready.get("status") == "True",
            reason=ready.get("reason", ""),
            message=ready.get("message", ""),
            image=spec.get("image", ""),
            pool_size=(spec.get("pool") or {}).get("size", 1),
            pool_ready=pool.get("ready", 0),
            recipe_hash=status.get("recipeHash", ""),
        )


@dataclass(frozen=True)
class Entry:
    """One path in a sandbox."""

    path: str
    type: str
    """`file`, `directory`, `symlink` or `other`."""
    size: int
    mode: int
    """Permission bits."""
    modified_at: datetime
    symlink_target: str
    etag: str = ""
    """Changes with the file's content; for AsyncFiles.edit."""

    @classmethod
    def from_proto(cls, message: exec_pb2.Entry) -> "Entry":
        """The typed view of the server's message."""
        return cls(
            path=message.path,
            type=word(exec_pb2.Entry.Type, message.type, "TYPE_"),
            size=message.size,
            mode=message.mode & 0o777,
            modified_at=moment(message.mtime),
            symlink_target=message.symlink_target,
            etag=message.etag,
        )


def _time(stamp: Timestamp, *, present: bool) -> datetime | None:
    return moment(stamp) if present else None
