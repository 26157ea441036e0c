"""gRPC channels: mutual TLS, and options that suit links which come and go."""

import functools
from collections.abc import Callable
from typing import Any, cast

import grpc

from cloister_api.liveness import signs_of_life
from cloister_api.wire import NOT_PACKED, careful

from ._errors import CallError, call_error
from ._forward import Forward

MAX_MESSAGE = 64 * 1024 * 1024
# Of a large answer. The server's largest, a list of all programs with their words and labels, has
# fewer; what takes a sandbox's place may send one of nothing but fields, a gigabyte when decoded.
MOST_FIELDS = 600_000
# Counting is slower than decoding: below so many bytes, a hundred megabytes when decoded, a sandbox
# gains nothing but its client's time by it.
SMALL = 4 * 1024 * 1024
# Reconnect soon after a loss, and never wait long: calls are bounded by time themselves.
_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Two sessions must never share a connection, whatever gRPC thinks of their credentials.
    ("grpc.use_local_subchannel_pool", 1),
    NOT_PACKED,
    # An http_proxy of this machine is meant for the internet, not for pods or loopback.
    ("grpc.enable_http_proxy", 0),
]
# Finds connections that died without a word, as they do behind a port-forward.
_KEEPALIVE = signs_of_life(20, within=10)


def open_channel(
    address: str,
    server_name: str,
    ca_pem: bytes,
    certificate_pem: bytes | None = None,
    private_key_pem: bytes | None = None,
    *,
    keepalive: bool = False,
    trusted: bool = False,
) -> grpc.aio.Channel:
    """A channel to host:port that accepts no server but `server_name`, certified by `ca_pem`.

    certificate_pem, private_key_pem: the caller's identity; None is anonymous.
    keepalive: ask for signs of life during calls; the server must permit it every 20 s.
    trusted: decode whatever the server answers, as of the operator; not of a sandbox.
    """
    credentials = grpc.ssl_channel_credentials(ca_pem, private_key_pem, certificate_pem)
    extra = _KEEPALIVE if keepalive else ()
    options = [*_OPTIONS, *extra, ("grpc.ssl_target_name_override", server_name)]
    channel = grpc.aio.secure_channel(address, credentials, options=options)
    return channel if trusted else cast("grpc.aio.Channel", _Channel(channel))


class Link:
    """A channel with its users: it closes when it is retired and the last of them is done."""

    def __init__(self, channel: grpc.aio.Channel, forward: Forward | None) -> None:
        self.channel = channel
        self.forward = forward
        self.users = 0
        self.retired = False

    async def close_if_unused(self) -> None:
        if self.retired and not self.users:
            await self.close()

    async def close(self) -> None:
        await self.channel.close()
        if self.forward is not None:
            await self.forward.close()


class _Channel:
    """A channel whose calls decode no answer that would take too much memory."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel: Any = channel

    def unary_unary(self, *given: Any, **named: Any) -> Any:
        """As of the channel; what generated code calls, like the other three."""
        return self._channel.unary_unary(*given, **_careful(named))

    def unary_stream(self, *given: Any, **named: Any) -> Any:
        """As of the channel."""
        return self._channel.unary_stream(*given, **_careful(named))

    def stream_unary(self, *given: Any, **named: Any) -> Any:
        """As of the channel."""
        return self._channel.stream_unary(*given, **_careful(named))

    def stream_stream(self, *given: Any, **named: Any) -> Any:
        """As of the channel."""
        return self._channel.stream_stream(*given, **_careful(named))

    async def close(self, grace: float | None = None) -> None:
        """As of the channel."""
        await self._channel.close(grace)


def _careful(named: dict[str, Any]) -> dict[str, Any]:
    return {**named, "response_deserializer": _decoder(named["response_deserializer"])}


def _decoder(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    return careful(
        decode,
        functools.partial(_sends, f"an answer of more than {MOST_FIELDS} fields"),
        functools.partial(_sends, "what is no answer to this call"),
        MOST_FIELDS,
        SMALL,
    )


def _sends(what: str) -> CallError:
    return call_error(grpc.StatusCode.DATA_LOSS, f"the server sends {what}")
