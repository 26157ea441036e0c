"""Bytes that go from one connection to another."""

import contextlib
import socket


def pass_on(one: socket.socket, other: socket.socket) -> None:
    """Pass on what comes until it ends; then neither says or hears more."""
    with contextlib.suppress(OSError):
        while data := one.recv(65_536):
            other.sendall(data)
    for each in (one, other):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
