"""Client library of Cloister: a computer of its own for every agent.

with cloister.session("data-analysis") as session:
    print(session.bash("python3 -c 'print(6*7)'").text)

The cluster is found by the standard Kubernetes configuration. `cloister.aio` is the same for
asyncio programs.
"""

from . import aio
from ._client import AsyncClient
from ._errors import (
    AlreadyExistsError,
    CallCancelledError,
    CallError,
    CloisterError,
    ConfigurationError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    KubernetesError,
    LocalFileError,
    NotFoundError,
    OutcomeUnknownError,
    PermissionDeniedError,
    ResourceExhaustedError,
    SessionEndedError,
    StartFailedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from ._models import (
    Blob,
    Block,
    Credentials,
    Entry,
    EnvironmentInfo,
    File,
    SessionInfo,
    ToolResult,
)
from ._session import AsyncSession
from ._sync import Client, Session, session

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncSession",
    "Blob",
    "Block",
    "CallCancelledError",
    "CallError",
    "Client",
    "CloisterError",
    "ConfigurationError",
    "Credentials",
    "DataLossError",
    "DeadlineExceededError",
    "Entry",
    "EnvironmentInfo",
    "FailedPreconditionError",
    "File",
    "InternalError",
    "InvalidArgumentError",
    "KubernetesError",
    "LocalFileError",
    "NotFoundError",
    "OutcomeUnknownError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "Session",
    "SessionEndedError",
    "SessionInfo",
    "StartFailedError",
    "ToolResult",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "aio",
    "session",
]
