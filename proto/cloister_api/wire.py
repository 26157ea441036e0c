"""What decoding a message would cost, seen before it is decoded.

A field takes two bytes on the wire and fifty in memory: a message of the largest size that is full
of empty ones takes more than many a pod, or a client, has.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

E = TypeVar("E", bound=Exception)
NOT_PACKED = ("grpc.compression_enabled_algorithms_bitset", 1)
"""Of servers and channels: small messages could be unpacked to large ones, again and again."""
SMALL = 1024 * 1024
"""Bytes up to which a message may have any fields."""
MOST = 100_000
"""Fields of a larger request, in all that is in it; more than a command line's words."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Inner: TypeAlias = "Mapping[int, Descriptor]"


class Malformed(Generic[E]):
    """In place of a message that is not decoded: gRPC would give None for it.

    Whoever looks at it raises its error.
    """

    def __init__(self, error: Callable[[], E]) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        raise self.error()


def careful(
    decode: Callable[[bytes], Any],
    too_many: Callable[[], Exception],
    no_message: Callable[[], Exception],
    most: int = MOST,
    small: int = SMALL,
) -> Callable[[bytes], Any]:
    """A decoder that never raises, and decodes nothing that `too_many_fields`; see Malformed.

    too_many, no_message: what is wrong then.
    """
    # Generated code gives the message's own method.
    kind = getattr(getattr(decode, "__self__", None), "DESCRIPTOR", None)

    def decoded(raw: bytes | None) -> Any:
        if raw is None:  # a call that ends well, and without its one answer
            return Malformed(no_message)
        if kind is not None and too_many_fields(raw, kind, most, small):
            return Malformed(too_many)
        try:
            return decode(raw)
        except DecodeError:
            return Malformed(no_message)

    return decoded


def too_many_fields(raw: bytes, kind: Descriptor, most: int = MOST, small: int = SMALL) -> bool:
    """Whether a message of this kind has too many fields to be decoded, more than `most`.

    One of at most `small` bytes may have any. What is no such message is for the decoder to tell,
    which takes in what comes before it finds that.
    """
    return len(raw) > small and _count(raw, kind, most) > most


def _count(raw: bytes, kind: Descriptor, most: int) -> int:
    """Fields, as far as they have to be counted."""
    count = 0
    pending = [(0, len(raw), kind)]
    while pending and count <= most:
        at, end, kind = pending.pop()
        inner = _inner(kind)
        # What ends in the middle of a number is over; what was before it still counts.
        with contextlib.suppress(IndexError):
            while at < end and count <= most:
                count += 1
                tag, at = _number(raw, at)
                form = tag & 7
                if form == _BYTES:
                    size, at = _number(raw, at)
                    below = inner.get(tag >> 3)
                    if size and below is not None:
                        pending.append((at, min(at + size, end), below))
                    at += size
                elif form == _VARINT:
                    _, at = _number(raw, at)
                elif form in (_FIXED64, _FIXED32):
                    at += 8 if form == _FIXED64 else 4
    return count


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where what is next begins; raises IndexError."""
    value = shift = 0
    while (byte := raw[at]) & 0x80:
        value |= (byte & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:  # none is longer
            raise IndexError
    return value | byte << shift, at + 1


@functools.cache
def _inner(kind: Descriptor) -> _Inner:
    """The fields that are messages, by number."""
    return {each.number: each.message_type for each in kind.fields if each.message_type is not None}
