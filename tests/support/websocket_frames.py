"""As much of WebSocket (RFC 6455) as an exchange of short messages takes."""

import base64
import hashlib
import struct

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FINAL, _MASKED, _LONGER = 0x80, 0x80, 126
TEXT, PING, PONG = 1, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def accepted(key: str) -> str:
    """What a server answers to a client's key."""
    return base64.b64encode(hashlib.sha1((key + _GUID).encode()).digest()).decode()


def frame(payload: bytes, kind: int = TEXT, mask: bytes = b"") -> bytes:
    """A whole message of at most 65,535 bytes; clients mask it with four bytes."""
    size = len(payload)
    masked = _MASKED if mask else 0
    if size < _LONGER:
        head = struct.pack("!BB", _FINAL | kind, masked | size)
    else:
        head = struct.pack("!BBH", _FINAL | kind, masked | _LONGER, size)
    return head + mask + (_mixed(payload, mask) if mask else payload)


def unpacked(said: bytes) -> tuple[int, bytes, bytes] | None:
    """The kind and payload of the first message, and what follows it; None before its end."""
    if len(said) < 2:
        return None
    kind, size, at = said[0] & 0x0F, said[1] & 0x7F, 2
    if size == _LONGER:
        if len(said) < 4:
            return None
        (size,), at = struct.unpack("!H", said[2:4]), 4
    mask = said[at : at + 4] if said[1] & _MASKED else b""
    at += 4 if said[1] & _MASKED else 0
    if len(said) < at + size:
        return None
    payload = said[at : at + size]
    return kind, _mixed(payload, mask) if mask else payload, said[at + size :]


def _mixed(payload: bytes, mask: bytes) -> bytes:
    return bytes(each ^ mask[index % 4] for index, each in enumerate(payload))
