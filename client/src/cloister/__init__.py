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
    EgressDecision,
    Entry,
    EnvironmentInfo,
    File,
    SessionInfo,
    ToolResult,
)
from ._outcomes import Exit, Gap, Output, OutputPolicy, ProcessInfo, ShellInfo
from ._programs import AsyncProcess
from ._session import AsyncSession
from ._shells import AsyncCommand, AsyncShell
from ._status import Resource, Violation
from ._sync import Client, Session, session
from ._sync_programs import Command, Process, Shell

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncCommand",
    "AsyncProcess",
    "AsyncSession",
    "AsyncShell",
    "Blob",
    "Block",
    "CallCancelledError",
    "CallError",
    "Client",
    "CloisterError",
    "Command",
    "ConfigurationError",
    "Credentials",
    "DataLossError",
    "DeadlineExceededError",
    "EgressDecision",
    "Entry",
    "EnvironmentInfo",
    "Exit",
    "FailedPreconditionError",
    "File",
    "Gap",
    "InternalError",
    "InvalidArgumentError",
    "KubernetesError",
    "LocalFileError",
    "NotFoundError",
    "OutcomeUnknownError",
    "Output",
    "OutputPolicy",
    "PermissionDeniedError",
    "Process",
    "ProcessInfo",
    "Resource",
    "ResourceExhaustedError",
    "Session",
    "SessionEndedError",
    "SessionInfo",
    "Shell",
    "ShellInfo",
    "StartFailedError",
    "ToolResult",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
    "aio",
    "session",
]
