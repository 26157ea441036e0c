"""Decodes google.rpc.Status, the typed details of a failed call.

The messages are a few small ones, and the package that carries their generated code would be the
library's only use of it. What arrives is not trusted: anything malformed means "no details".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_PREFIX = "type.googleapis.com/google.rpc."


@dataclass(frozen=True)
class Resource:
    """What a call names that is not there, or that is in its way."""

    type: str
    """`file`, `process`, `shell`, `command`, `context`, `call` or `upload`."""
    name: str
    """Its path or id."""


@dataclass(frozen=True)
class Violation:
    """What stands in a call's way: a precondition that does not hold, or a bound reached."""

    type: str
    """Of a precondition the reason, such as ETAG_MISMATCH; of a bound its name, as `shells`."""
    subject: str
    """What it is about: a path, an id, or `sandbox`."""
    description: str
    limit: int | None = None
    """The bound's value; None of a precondition, and where the machine has it."""


@dataclass(frozen=True)
class Details:
    """What a failed call says beyond its code and message."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    field: str = ""
    retry_after: float | None = None
    """Seconds."""
    resource: Resource | None = None
    violations: tuple[Violation, ...] = ()


def decode(raw: bytes) -> Details:
    """Decode the trailing metadata `grpc-status-details-bin`; empty when it is malformed."""
    try:
        return _status(raw)
    except (IndexError, UnicodeDecodeError, ValueError):
        return Details()


def _status(raw: bytes) -> Details:
    reason, name, retry_after, resource = "", "", None, None
    metadata: dict[str, str] = {}
    violations: list[Violation] = []
    for number, value in _fields(raw):
        if number != 3 or not isinstance(value, bytes):
            continue
        kind, content = _any(value)
        if kind == "ErrorInfo":
            reason, metadata = _error_info(content)
        elif kind == "BadRequest":
            name = name or _first_violation(content)
        elif kind == "RetryInfo":
            retry_after = _retry_delay(content)
        elif kind == "ResourceInfo":
            texts = _texts(content)
            resource = Resource(texts.get(1, ""), texts.get(2, ""))
        elif kind == "PreconditionFailure":
            violations += [_precondition(each) for each in _messages(content)]
        elif kind == "QuotaFailure":
            violations += [_bound(each) for each in _messages(content)]
    return Details(reason, metadata, name, retry_after, resource, tuple(violations))


def _any(raw: bytes) -> tuple[str, bytes]:
    kind, content = "", b""
    for number, value in _fields(raw):
        if isinstance(value, bytes) and number == 1:
            kind = value.decode().removeprefix(_PREFIX)
        elif isinstance(value, bytes) and number == 2:
            content = value
    return kind, content


def _error_info(raw: bytes) -> tuple[str, dict[str, str]]:
    reason = ""
    metadata: dict[str, str] = {}
    for number, value in _fields(raw):
        if not isinstance(value, bytes):
            continue
        if number == 1:
            reason = value.decode()
        elif number == 3:
            pair = {key: text for key, text in _fields(value) if isinstance(text, bytes)}
            metadata[pair.get(1, b"").decode()] = pair.get(2, b"").decode()
    return reason, metadata


def _messages(raw: bytes) -> Iterator[bytes]:
    """The violations in a message; all of their kinds have them in field 1."""
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            yield value


def _texts(raw: bytes) -> dict[int, str]:
    """The strings of a message, by their numbers; what else it has is left out."""
    return {number: value.decode() for number, value in _fields(raw) if isinstance(value, bytes)}


def _first_violation(raw: bytes) -> str:
    return next((name for each in _messages(raw) if (name := _texts(each).get(1, ""))), "")


def _precondition(raw: bytes) -> Violation:
    texts = _texts(raw)
    return Violation(texts.get(1, ""), texts.get(2, ""), texts.get(3, ""))


def _bound(raw: bytes) -> Violation:
    texts = {number: value for number, value in _fields(raw) if isinstance(value, bytes)}
    values = {number: value for number, value in _fields(raw) if isinstance(value, int)}
    subject, description, name = (texts.get(each, b"").decode() for each in (1, 2, 5))
    return Violation(name, subject, description, values.get(7))


def _retry_delay(raw: bytes) -> float | None:
    for number, value in _fields(raw):
        if number == 1 and isinstance(value, bytes):
            parts = {key: part for key, part in _fields(value) if isinstance(part, int)}
            return parts.get(1, 0) + parts.get(2, 0) / 1e9
    return None


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of an encoded message; raises ValueError or IndexError when it is malformed."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(raw, at)
            yield key >> 3, number
        elif wire == 2:
            length, at = _varint(raw, at)
            if at + length > len(raw):
                raise ValueError("a field is longer than its message")
            yield key >> 3, raw[at : at + length]
            at += length
        else:
            raise ValueError(f"unexpected wire type {wire}")


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
