"""Failures of a call, and how they travel: a gRPC status with typed details.

    CallError                    the call failed
    ├── InvalidField             INVALID_ARGUMENT, names the field
    ├── NotFound                 NOT_FOUND
    ├── IdConflict               ALREADY_EXISTS: the id is in use for another payload
    ├── Exists                   ALREADY_EXISTS: what is to be made is there
    ├── Stale                    ABORTED: a file is not the one the caller means
    ├── WrongState               FAILED_PRECONDITION
    ├── OutOfRange               OUT_OF_RANGE: an offset beyond what there is
    ├── Forbidden                PERMISSION_DENIED
    ├── Busy                     RESOURCE_EXHAUSTED: which bound, with a hint when to retry
    ├── Unavailable              UNAVAILABLE: preparing or draining
    └── Corrupt                  DATA_LOSS

The details are `google.rpc.Status` in the trailing metadata `grpc-status-details-bin`, as the gRPC
richer error model asks: ErrorInfo always, and the standard message of the kind. They are encoded
here, because the package with the generated messages is not part of the sandbox image.
"""

from collections.abc import Mapping

import grpc

DOMAIN = "exec.cloister.dev"
MAX_MESSAGE = 1000
MAX_VALUE = 520
"""Bytes. A client refuses an answer whose headers are long, and would not learn what was wrong; an
id of 128 characters fits."""
MAX_DESCRIPTION = 240
"""Bytes. The message says it in full, and headers have room for it once."""
RESOURCES = {
    "path": "file",
    "member": "member",
    "id": "process",
    "shell_id": "shell",
    "command_id": "command",
    "context_id": "context",
    "request_id": "call",
    "upload_id": "upload",
}
"""What the first of an error's metadata names, by its key."""
SANDBOX = "sandbox"
"""The subject where no metadata name one."""
_TYPE = "type.googleapis.com/google.rpc."


def place(error: Exception) -> tuple[str, int]:
    """File and line where an error arose: what may be logged of one that nobody foresaw.

    Its words may hold what a file or a command says.
    """
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    if where is None:
        return "", 0
    return where.tb_frame.f_code.co_filename.rpartition("/")[2], where.tb_lineno


class CallError(Exception):
    """A call that failed; `reason` is the machine's word, the message the person's sentence."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        message = _bounded(message, MAX_MESSAGE)
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = {key: _bounded(value, MAX_VALUE) for key, value in metadata.items()}

    def details(self) -> list[tuple[str, bytes]]:
        """Pairs of a message type's name and its encoded value."""
        return [("ErrorInfo", _error_info(self.reason, self.metadata))]

    def about(self) -> tuple[str, str]:
        """What the call failed at, by kind and name, as the first of the metadata says."""
        key = next(iter(self.metadata), "")
        kind = RESOURCES.get(key, SANDBOX)
        return kind, "" if kind == SANDBOX else self.metadata[key]

    def status_details(self) -> bytes:
        """The encoded google.rpc.Status."""
        number: int = self.code.value[0]
        status = _varint(1, number) + _bytes(2, self.message.encode())
        for name, value in self.details():
            status += _bytes(3, _bytes(1, (_TYPE + name).encode()) + _bytes(2, value))
        return status


class InvalidField(CallError):
    """Wrong input; `field` is its path in the request."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, message: str) -> None:
        super().__init__("INVALID_FIELD", f"{field}: {message}", field=field)
        shown = _bounded(message, MAX_MESSAGE)
        self._violation = _bytes(1, field.encode()) + _bytes(2, shown.encode())

    def details(self) -> list[tuple[str, bytes]]:
        return [*super().details(), ("BadRequest", _bytes(1, self._violation))]


class _OfResource(CallError):
    """Something is missing, or in the way: the first of the metadata names it."""

    def details(self) -> list[tuple[str, bytes]]:
        kind, name = self.about()
        found = _bytes(1, kind.encode()) + _bytes(2, name.encode())
        return [*super().details(), ("ResourceInfo", found)]


class NotFound(_OfResource):
    """What the call names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class IdConflict(_OfResource):
    """The id is already used for something else."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Exists(_OfResource):
    """What the call would make exists already."""

    code = grpc.StatusCode.ALREADY_EXISTS


class _Precondition(CallError):
    """Something does not hold; the first of the metadata names what it should hold of."""

    def details(self) -> list[tuple[str, bytes]]:
        kind, name = self.about()
        violation = _bytes(1, self.reason.encode()) + _bytes(2, (name or kind).encode())
        violation += _bytes(3, _bounded(self.message, MAX_DESCRIPTION).encode())
        return [*super().details(), ("PreconditionFailure", _bytes(1, violation))]


class Stale(_Precondition):
    """The file is not the one that the caller means: read it again."""

    code = grpc.StatusCode.ABORTED


class WrongState(_Precondition):
    """The call does not fit the server's state; repeating it cannot help."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRange(CallError):
    """An offset beyond what there is."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Forbidden(CallError):
    """The caller, or the path, is not permitted."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Busy(CallError):
    """A bound is reached; try again after `retry_after` seconds.

    bound: its name in docs/exec.md. most: its value; 0 where the machine has it, not the server.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(
        self, reason: str, message: str, retry_after: float, bound: str, most: int = 0
    ) -> None:
        super().__init__(reason, message)
        self._retry_after = retry_after
        self._bound = bound
        self._most = most

    def details(self) -> list[tuple[str, bytes]]:
        seconds = int(self._retry_after)
        nanos = int((self._retry_after - seconds) * 1e9)
        delay = _varint(1, seconds) + _varint(2, nanos)
        violation = _bytes(1, SANDBOX.encode())
        violation += _bytes(2, _bounded(self.message, MAX_DESCRIPTION).encode())
        violation += _bytes(5, self._bound.encode())
        if self._most:
            violation += _varint(7, self._most)
        return [
            *super().details(),
            ("QuotaFailure", _bytes(1, violation)),
            ("RetryInfo", _bytes(1, delay)),
        ]


class Unavailable(CallError):
    """Not now: the server is preparing or draining."""

    code = grpc.StatusCode.UNAVAILABLE


class Corrupt(CallError):
    """Bytes went missing."""

    code = grpc.StatusCode.DATA_LOSS


def _bounded(text: str, most: int) -> str:
    """The text as UTF-8 has it, cut to so many bytes."""
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"


def _error_info(reason: str, metadata: Mapping[str, str]) -> bytes:
    info = _bytes(1, reason.encode()) + _bytes(2, DOMAIN.encode())
    for key, value in sorted(metadata.items()):
        info += _bytes(3, _bytes(1, key.encode()) + _bytes(2, value.encode()))
    return info


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value
