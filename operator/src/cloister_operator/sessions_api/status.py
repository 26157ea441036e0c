"""How a call fails: a gRPC status with typed details.

CallError
├── Unauthenticated   UNAUTHENTICATED: no token, or one that is not valid
├── Forbidden         PERMISSION_DENIED: a right is missing
├── InvalidFields     INVALID_ARGUMENT, names every wrong field
├── NotFound          NOT_FOUND
├── AlreadyExists     ALREADY_EXISTS
├── WrongState        FAILED_PRECONDITION
├── Unfinished        DEADLINE_EXCEEDED: the session is there, and not running yet
├── Busy              RESOURCE_EXHAUSTED, with a hint when to retry
│   └── QuotaReached      the same, and names the quota
└── Unavailable       UNAVAILABLE, with a hint when to retry
"""

import logging
import re
import traceback
from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from ..api import conditions
from ..api.backend import ALREADY_EXISTS
from ..errors import NotFoundError, PermanentError, QuotaError, TransientError

DOMAIN: Final = "sessions.cloister.dev"
RETRY_SECONDS: Final = 1.0
"""The hint where the other side gave none."""
QUOTA: Final = re.compile(r"exceeded quota: ([a-z0-9.-]+)")
"""How a message names the quota."""
QUOTA_SECONDS: Final = 5.0
"""The hint where a quota is used up: somebody's session has to end first."""
_LONGEST = 1024
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_REQUEST_FIELDS = {
    "spec.environmentName": "environment",
    "spec.lifecycle.idleTimeout": "idle_timeout",
    "spec.lifecycle.maxLifetime": "max_lifetime",
}
log = logging.getLogger(__name__)


class CallError(Exception):
    """A call that failed; `reason` is for machines (UPPER_SNAKE), the message for people."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
        self.metadata = metadata

    def details(self) -> list[Message]:
        """Messages of google.rpc that say more."""
        return [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]

    def status_details(self) -> bytes:
        """The value of `grpc-status-details-bin`: an encoded google.rpc.Status."""
        number: int = self.code.value[0]
        status = status_pb2.Status(code=number, message=self.message)
        for each in self.details():
            packed = AnyMessage()
            packed.Pack(each)
            status.details.append(packed)
        encoded: bytes = status.SerializeToString()
        return encoded


class Unauthenticated(CallError):
    """Nobody we know."""

    code = grpc.StatusCode.UNAUTHENTICATED


class Forbidden(CallError):
    """Somebody we know, without the right."""

    code = grpc.StatusCode.PERMISSION_DENIED


class InvalidFields(CallError):
    """Wrong input; each violation is a field's path in the request and a sentence about it."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(
        self, violations: Sequence[tuple[str, str]], reason: str = "INVALID_FIELD"
    ) -> None:
        said = "; ".join(f"{field}: {sentence}" for field, sentence in violations)
        super().__init__(reason, said, field=violations[0][0])
        self.violations = violations

    def details(self) -> list[Message]:
        bad = error_details_pb2.BadRequest()
        for field, sentence in self.violations:
            bad.field_violations.add(field=field, description=sentence)
        return [*super().details(), bad]


class NotFound(CallError):
    """What was named does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(CallError):
    """The name or the request id is taken by something else."""

    code = grpc.StatusCode.ALREADY_EXISTS


class WrongState(CallError):
    """Not in this state of things."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Unfinished(CallError):
    """The time to wait is over, the work goes on."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class _Retriable(CallError):
    def __init__(
        self, reason: str, message: str, retry_after: float = RETRY_SECONDS, **metadata: str
    ) -> None:
        super().__init__(reason, message, **metadata)
        self.retry_after = retry_after

    def details(self) -> list[Message]:
        hint = error_details_pb2.RetryInfo()
        hint.retry_delay.FromMilliseconds(int(self.retry_after * 1000))
        return [*super().details(), hint]


class Busy(_Retriable):
    """Too much at once."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class QuotaReached(Busy):
    """A quota of the platform is used up."""

    def __init__(self, message: str, quota: str, retry_after: float, **metadata: str) -> None:
        super().__init__("QUOTA_EXCEEDED", message, retry_after, quota=quota, **metadata)

    def details(self) -> list[Message]:
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=self.metadata["quota"], description=self.message)
        return [*super().details(), failure]


class Unavailable(_Retriable):
    """Not now."""

    code = grpc.StatusCode.UNAVAILABLE


def from_error(error: BaseException) -> CallError:
    """The status of an error of the layers below.

    An error that nobody foresaw becomes INTERNAL and says nothing of itself to the caller. Its
    place is logged without its words: they may quote what the caller sent.
    """
    match error:
        case CallError():
            return error
        case PermanentError():
            return _permanent(error)
        case NotFoundError():
            return NotFound("NOT_FOUND", "the session does not exist")
        case QuotaError():
            return QuotaReached(str(error), error.quota, error.retry_after or QUOTA_SECONDS)
        case TransientError():
            after = RETRY_SECONDS if error.retry_after is None else max(0.0, error.retry_after)
            return Unavailable(
                "TRY_AGAIN", "the cluster could not complete this now; try again", after
            )
    place = "".join(traceback.format_tb(error.__traceback__))
    log.error("a call failed unexpectedly: %s\n%s", type(error).__name__, place)
    return CallError("INTERNAL", "an internal error; the operator's log says where")


def upper_snake(reason: str) -> str:
    """A condition's CamelCase reason as google.rpc.ErrorInfo wants it."""
    return _HUMP.sub("_", reason).upper()


def request_field(field: str) -> str:
    """A field of a Session's manifest as the request names it."""
    known = _REQUEST_FIELDS.get(field)
    return known or field.removeprefix("spec.").removeprefix("metadata.")


def _permanent(error: PermanentError) -> CallError:
    reason = upper_snake(error.reason)
    if error.reason == ALREADY_EXISTS:
        return AlreadyExists(reason, error.sentence, field=request_field(error.field or "name"))
    if error.reason == conditions.ENVIRONMENT_NOT_FOUND:
        return NotFound(reason, error.sentence, field="environment")
    if error.field:
        return InvalidFields([(request_field(error.field), error.sentence)], reason)
    return WrongState(reason, error.sentence)
