"""The name that a TLS client asks for, read from its first message. Pure.

What is read here only says which name to ask the gateway for; the second squid reads the message
again, by itself, and lets nothing pass that asks for another.
"""

MAX_HELLO = 16_384
"""Bytes of a first message that are looked at; what clients send has a tenth of that."""
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_MAX_RECORD, _MAX_RECORDS = 16_384, 16


class NotHello(Exception):
    """It is no first message of TLS, or has no name that is one; the message says which."""


class _Short(Exception):
    """There is more to come."""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) < count:
            raise _Short
        self._at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def block(self, size: int) -> "_Reader":
        """What a length of so many bytes stands before."""
        return _Reader(self.take(self.number(size)))

    def more(self) -> bool:
        return self._at < len(self._data)

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def server_name(data: bytes) -> str | None:
    """The server's name as the client wrote it; None while the message is not whole.

    Raises NotHello for what no more bytes can make a message with one name.
    """
    message = _message(data)
    if message is None:
        return None
    try:
        return _name(_Reader(message))
    except _Short:
        raise NotHello("the message is shorter than it says") from None


def _message(data: bytes) -> bytes | None:
    """The handshake message without its head, from however many records it was cut into."""
    reader, message = _Reader(data), b""
    try:
        for _ in range(_MAX_RECORDS):
            # As early as it can be seen: who speaks something else may wait for an answer first.
            if reader.number(1) != _HANDSHAKE or reader.number(1) != 3:
                raise NotHello("it is no TLS")
            reader.take(1)
            size = reader.number(2)
            if not 0 < size <= _MAX_RECORD:
                raise NotHello("it is no TLS")
            message += reader.take(size)
            if message[0] != _CLIENT_HELLO:
                raise NotHello("it is not a client's first message")
            if len(message) >= 4:
                wanted = 4 + int.from_bytes(message[1:4], "big")
                if wanted > MAX_HELLO:
                    raise NotHello("the message is too long")
                if len(message) >= wanted:
                    return message[4:wanted]
        raise NotHello("the message comes in too many records")
    except _Short:
        if len(data) >= MAX_HELLO:
            raise NotHello("the message is too long") from None
        return None


def _name(hello: _Reader) -> str:
    hello.take(2 + 32)  # version and random
    hello.block(1)  # session
    hello.block(2)  # ciphers
    hello.block(1)  # compression
    found: list[bytes] = []
    extensions = hello.block(2) if hello.more() else _Reader(b"")
    while extensions.more():
        kind = extensions.number(2)
        body = extensions.block(2)
        if kind != _SERVER_NAME:
            continue
        names = body.block(2)
        while names.more():
            # A client that names two leaves it to each reader which one it means.
            if names.number(1) != _HOST_NAME or found:
                raise NotHello("it has more than one name")
            found.append(names.block(2).rest())
    if not found:
        raise NotHello("it has no name")
    try:
        return found[0].decode("ascii")
    except UnicodeDecodeError:
        raise NotHello("its name is none") from None
