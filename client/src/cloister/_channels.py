"""gRPC channels: mutual TLS, and options that suit links which come and go."""

import grpc

MAX_MESSAGE = 64 * 1024 * 1024
# Reconnect soon after a loss, and never wait long: calls are bounded by time themselves.
_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Two sessions must never share a connection, whatever gRPC thinks of their credentials.
    ("grpc.use_local_subchannel_pool", 1),
    # An http_proxy of this machine is meant for the internet, not for pods or loopback.
    ("grpc.enable_http_proxy", 0),
]
# Finds connections that died without a word, as they do behind a port-forward.
_KEEPALIVE: list[tuple[str, int | str]] = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Without it the timeout is a minute, whatever the line above says.
    ("grpc.http2.ping_timeout_ms", 10_000),
]


def open_channel(
    address: str,
    server_name: str,
    ca_pem: bytes,
    certificate_pem: bytes | None = None,
    private_key_pem: bytes | None = None,
    *,
    keepalive: bool = False,
) -> grpc.aio.Channel:
    """A channel to host:port that accepts no server but `server_name`, certified by `ca_pem`.

    certificate_pem, private_key_pem: the caller's identity; None is anonymous.
    keepalive: ask for signs of life during calls; the server must permit it every 20 s.
    """
    credentials = grpc.ssl_channel_credentials(ca_pem, private_key_pem, certificate_pem)
    extra = _KEEPALIVE if keepalive else []
    options = [*_OPTIONS, *extra, ("grpc.ssl_target_name_override", server_name)]
    return grpc.aio.secure_channel(address, credentials, options=options)
