"""Client library of Cloister: a computer of its own for every agent.

with cloister.session("data-analysis") as session:
    print(session.bash("python3 -c 'print(6*7)'").text)

The cluster is found by the standard Kubernetes configuration. `cloister.aio` is the same for
asyncio programs.
"""

from . import aio
from ._client import AsyncClient
from ._deadline import deadline
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
from ._file_results import (
    Change,
    EditResult,
    GlobResult,
    GrepLine,
    GrepResult,
    Replacement,
    TextSlice,
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
from ._server_info import Activity, ServerInfo
from ._session import AsyncSession
from ._shells import AsyncCommand, AsyncShell
from ._status import Resource, Violation
from ._sync import Session
from ._sync_client import Client, session
from ._sync_files import Files, Watch
from ._sync_programs import Command, Process, Shell
from ._workspace import AsyncFiles, AsyncWatch

__all__ = [
    "Activity",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncCommand",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncSession",
    "AsyncShell",
    "AsyncWatch",
    "Blob",
    "Block",
    "CallCancelledError",
    "CallError",
    "Change",
    "Client",
    "CloisterError",
    "Command",
    "ConfigurationError",
    "Credentials",
    "DataLossError",
    "DeadlineExceededError",
    "EditResult",
    "EgressDecision",
    "Entry",
    "EnvironmentInfo",
    "Exit",
    "FailedPreconditionError",
    "File",
    "Files",
    "Gap",
    "GlobResult",
    "GrepLine",
    "GrepResult",
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
    "Replacement",
    "Resource",
    "ResourceExhaustedError",
    "ServerInfo",
    "Session",
    "SessionEndedError",
    "SessionInfo",
    "Shell",
    "ShellInfo",
    "StartFailedError",
    "TextSlice",
    "ToolResult",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Violation",
    "Watch",
    "aio",
    "deadline",
    "session",
]
