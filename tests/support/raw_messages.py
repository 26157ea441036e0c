"""Messages as they are on the wire, piece by piece, for such as no library would send."""


def number(value: int) -> bytes:
    """A number of variable length."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(which: int, content: bytes) -> bytes:
    """A field with bytes, or a message."""
    return number(which << 3 | 2) + number(len(content)) + content
