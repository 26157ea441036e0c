"""What the outer layers (Sessions API, health endpoints) ask of the inner ones."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol

from .session import SessionObject

ALREADY_EXISTS: Final = "AlreadyExists"
"""Reason of the refusal when another call made the Session."""


@dataclass(frozen=True)
class NewFile:
    """A file that a caller sends with a new session."""

    path: str
    mode: int
    content: bytes


@dataclass(frozen=True)
class NewSession:
    """A caller's request for a session, validated in form."""

    namespace: str
    environment: str
    name: str
    """Empty: the backend chooses one."""
    request_id: str
    caller: str = ""
    """The username; a request id means nothing to another caller."""
    env: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[NewFile] = ()
    idle_timeout: timedelta | None = None
    max_lifetime: timedelta | None = None


@dataclass(frozen=True)
class SessionChange:
    """What a watcher sees: a session's new state, a deletion, or the end of the initial state."""

    session: SessionObject | None = None
    deleted: tuple[str, str] | None = None
    synced: bool = False


@dataclass(frozen=True)
class EgressRecord:
    """Connections of a session that the egress gateways decided alike."""

    host: str
    """As it was asked for: hostile input, cleaned; empty for what was no name."""
    port: int
    allowed: bool
    reason: str
    count: int
    first: datetime
    last: datetime
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True)
class Caller:
    """Who a bearer token belongs to, by TokenReview."""

    username: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class SessionsBackend(Protocol):
    """Sessions, for the Sessions API."""

    async def create_session(self, new: NewSession) -> SessionObject:
        """Make the Session, or find the one that the same request id made.

        Starts its claim at once; it need not be Running yet. Raises PermanentError (reason
        EnvironmentNotFound, AlreadyExists with field `name` or `requestId`, or a wrong field) and
        TransientError.
        """
        ...

    async def wait_settled(self, namespace: str, name: str, timeout: float) -> SessionObject | None:
        """The Session once it is as its spec wants it (running or suspended), has ended or waits
        for a person (condition Ready False with its pod not coming); as it is after `timeout`
        seconds; None when it is gone.
        """
        ...

    def get_session(self, namespace: str, name: str) -> SessionObject | None:
        """The Session, or None."""
        ...

    def exec_address(self, session: SessionObject) -> tuple[str, int] | None:
        """Where its exec server listens, by what Kubernetes says of its pod; None for nowhere."""
        ...

    def list_sessions(self, namespace: str, environment: str) -> list[SessionObject]:
        """Sessions of a namespace, of one Environment unless that is empty, by name."""
        ...

    def watch_sessions(self, namespace: str, name: str) -> AsyncIterator[SessionChange]:
        """Follow sessions of a namespace, or the one named unless that is empty."""
        ...

    def expires_at(self, session: SessionObject) -> datetime | None:
        """When its lifetime ends, if its Environment is known."""
        ...

    async def set_state(
        self, namespace: str, name: str, state: Literal["Running", "Suspended"]
    ) -> SessionObject | None:
        """Ask for a session to be suspended, or to run again; None when there is none.

        It need not be so yet: see `wait_settled`. Raises PermanentError (WorkspaceNotPersistent)
        when suspending it would lose its work, and TransientError.
        """
        ...

    def egress(self, session: SessionObject) -> list[EgressRecord]:
        """What the session's pod tried to reach through the egress gateways, the newest last; only
        the process that leads knows.
        """
        ...

    async def delete_session(self, namespace: str, name: str) -> bool:
        """End and delete it; False when there was none."""
        ...


class Leadership(Protocol):
    """Who decides, of the operators that run."""

    def leads(self) -> bool:
        """Whether this process does, at this moment."""
        ...

    def leader(self) -> str:
        """host:port of the Sessions API of another process that does; empty when there is none."""
        ...


class Reviewer(Protocol):
    """Who is calling, and may they?"""

    async def review_token(self, token: str) -> Caller | None:
        """TokenReview; None for a token that is not valid. Raises TransientError."""
        ...

    async def review_access(
        self, caller: Caller, verb: str, resource: str, subresource: str, namespace: str, name: str
    ) -> bool:
        """SubjectAccessReview in group cloister.dev. Raises TransientError."""
        ...


class HealthState(Protocol):
    """Whether this process is worth keeping, and worth calling."""

    def live(self) -> str | None:
        """A sentence about what is stuck, or None."""
        ...

    def ready(self) -> str | None:
        """A sentence about what is missing, or None."""
        ...
