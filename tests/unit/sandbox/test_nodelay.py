"""Connections that do not hold short answers back."""

import contextlib
import socket
from collections.abc import Iterator

from cloister_sandbox.nodelay import Connections


@contextlib.contextmanager
def connection() -> Iterator[socket.socket]:
    """An accepted connection."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        yield accepted


def delays(sock: socket.socket) -> bool:
    return not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_first_call_of_a_connection_sets_the_option() -> None:
    connections = Connections()
    with connection() as first:
        assert delays(first)
        connections.look("ipv4:10.0.0.1:1000")
        assert not delays(first)
        with connection() as second:
            connections.look("ipv4:10.0.0.1:1000")
            assert delays(second)
            connections.look("ipv4:10.0.0.1:1001")
            assert not delays(second)


def test_the_option_is_left_alone_where_the_kernel_hands_it_on() -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            assert Connections().needed == delays(accepted)
