"""Everything that can go wrong, as one tree.

    CloisterError
    ├── ConfigurationError          no usable Kubernetes configuration, or Cloister is not installed
    ├── KubernetesError             the Kubernetes API refused a request or was not reached
    ├── LocalFileError              a file of this machine cannot be read or written
    ├── SessionEndedError           the session is over; phase and reason say why
    ├── StartFailedError            a program or command could not be started; kind says why
    ├── OutcomeUnknownError         how a program or command ended cannot be found out any more
    └── CallError                   a call failed; code, reason, metadata, resource, violations
        ├── InvalidArgumentError    INVALID_ARGUMENT, OUT_OF_RANGE; field
        ├── UnauthenticatedError    UNAUTHENTICATED
        ├── PermissionDeniedError   PERMISSION_DENIED
        ├── NotFoundError           NOT_FOUND
        ├── AlreadyExistsError      ALREADY_EXISTS
        ├── FailedPreconditionError FAILED_PRECONDITION, ABORTED
        ├── ResourceExhaustedError  RESOURCE_EXHAUSTED; retry_after
        ├── DeadlineExceededError   DEADLINE_EXCEEDED
        ├── CallCancelledError      CANCELLED
        ├── UnavailableError        UNAVAILABLE
        ├── UnimplementedError      UNIMPLEMENTED
        ├── DataLossError           DATA_LOSS
        └── InternalError           INTERNAL, UNKNOWN

What a tool found (a missing file, a command's exit code) is no error but a ToolResult, and how a
program ended is an Exit.
"""

from collections.abc import Mapping

import grpc

from ._status import Details, Resource, Violation, decode

_DETAILS_KEY = "grpc-status-details-bin"


class CloisterError(Exception):
    """The root of all errors of this library."""


class ConfigurationError(CloisterError):
    """There is no usable Kubernetes configuration, or Cloister is not installed in the cluster."""


class KubernetesError(CloisterError):
    """The Kubernetes API refused a request or was not reached."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status; None when there was no answer."""


class LocalFileError(CloisterError):
    """A file or directory of this machine cannot be read or written."""


class SessionEndedError(CloisterError):
    """The session is over, and nothing can run in it any more."""

    def __init__(self, name: str, phase: str, reason: str, message: str) -> None:
        why = f": {message or reason}" if message or reason else ""
        super().__init__(f"session {name} is {phase.lower()}{why}")
        self.name = name
        self.phase = phase
        """`Failed` or `Terminated`."""
        self.reason = reason
        """One CamelCase word, such as OOMKilled."""


class StartFailedError(CloisterError):
    """A program or a shell's command could not be started, so nothing of it ran."""

    def __init__(self, message: str, kind: str, errno: int) -> None:
        super().__init__(message)
        self.kind = kind
        """`not_found`, `permission_denied`, `not_executable`, `bad_cwd`, `bad_arguments`,
        `resource_limit` or `other`."""
        self.errno = errno
        """The error's number on Linux; 0 when there is none."""


class OutcomeUnknownError(CloisterError):
    """It may have run, and how it ended cannot be found out: the exec server does not know it.

    It was started anew meanwhile, or does not keep the outcome any more. Nothing is run again.
    """


class CallError(CloisterError):
    """A call to the Sessions API or to an exec server failed."""

    def __init__(self, message: str, code: grpc.StatusCode, details: Details | None = None) -> None:
        super().__init__(message)
        details = details or Details()
        self.code = code
        self.reason = details.reason
        """The machine's word for what happened, such as ID_CONFLICT; may be empty."""
        self.metadata: Mapping[str, str] = details.metadata
        self.field = details.field
        """Path of the input that was wrong; empty when none is named."""
        self.retry_after = details.retry_after
        """Seconds after which a repetition may help; None when the server names none."""
        self.resource: Resource | None = details.resource
        """What is not there, or in the way; None when the server names none."""
        self.violations: tuple[Violation, ...] = details.violations
        """The preconditions that do not hold, or the bounds that are reached."""


class InvalidArgumentError(CallError):
    """The input is wrong; `field` names it."""


class UnauthenticatedError(CallError):
    """The caller's token or certificate is not accepted."""


class PermissionDeniedError(CallError):
    """The caller, or the path, is not permitted."""


class NotFoundError(CallError):
    """What the call names does not exist."""


class AlreadyExistsError(CallError):
    """The name or the request id is taken by something else."""


class FailedPreconditionError(CallError):
    """The call does not fit the present state; repeating it does not help."""


class ResourceExhaustedError(CallError):
    """A quota or bound is reached."""


class DeadlineExceededError(CallError):
    """The call's time was used up; whether it took effect is not known."""


class CallCancelledError(CallError):
    """The call was cancelled."""


class UnavailableError(CallError):
    """The other side cannot be reached, or takes no calls now."""


class UnimplementedError(CallError):
    """This version of Cloister does not have it."""


class DataLossError(CallError):
    """Bytes went missing or changed on the way."""


class InternalError(CallError):
    """A fault on the other side."""


_Code = grpc.StatusCode
ERROR_OF_CODE: Mapping[grpc.StatusCode, type[CallError]] = {
    _Code.CANCELLED: CallCancelledError,
    _Code.UNKNOWN: InternalError,
    _Code.INVALID_ARGUMENT: InvalidArgumentError,
    _Code.DEADLINE_EXCEEDED: DeadlineExceededError,
    _Code.NOT_FOUND: NotFoundError,
    _Code.ALREADY_EXISTS: AlreadyExistsError,
    _Code.PERMISSION_DENIED: PermissionDeniedError,
    _Code.UNAUTHENTICATED: UnauthenticatedError,
    _Code.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    _Code.FAILED_PRECONDITION: FailedPreconditionError,
    _Code.ABORTED: FailedPreconditionError,
    _Code.UNIMPLEMENTED: UnimplementedError,
    _Code.INTERNAL: InternalError,
    _Code.UNAVAILABLE: UnavailableError,
    _Code.DATA_LOSS: DataLossError,
    _Code.OUT_OF_RANGE: InvalidArgumentError,
}


def call_error(code: grpc.StatusCode, message: str, details: Details | None = None) -> CallError:
    """The error for a status code."""
    return ERROR_OF_CODE[code](message or code.name, code, details)


def suspended(session: str, message: str) -> CallError:
    """The error about a session that has no sandbox until it is resumed."""
    why = f": {message}" if message else ""
    return call_error(grpc.StatusCode.FAILED_PRECONDITION, f"session {session} is suspended{why}")


def from_rpc(error: grpc.aio.AioRpcError, problem: str = "") -> CallError:
    """The error for a failed call.

    problem: what the connection to the other side failed with, when that is known; it says more
    than gRPC's own words, which are about a socket of this machine.
    """
    raw = next(
        (value for key, value in error.trailing_metadata() or () if key == _DETAILS_KEY), b""
    )
    details = decode(raw) if isinstance(raw, bytes) else Details()
    message = error.details() or ""
    if problem and error.code() is grpc.StatusCode.UNAVAILABLE:
        message = problem
    return call_error(error.code(), message, details)
