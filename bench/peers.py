"""What a client needs to call one server, and the channels it opens."""

from dataclasses import dataclass

import grpc
from bench.certificates import Authority
from cryptography import x509

_OPTIONS: list[tuple[str, int | str]] = [
    # Dialling a server that is still starting must not wait for gRPC's first backoff of 1 s.
    ("grpc.initial_reconnect_backoff_ms", 1),
    # Also an attempt's time limit, its handshake included.
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 2),
    # Each channel is a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True)
class Peer:
    """A server, and the identity that calls it; PEM."""

    address: str
    server_name: str
    ca: str
    certificate: str
    private_key: str

    def channel(self) -> grpc.Channel:
        """A connection of the synchronous client."""
        return grpc.secure_channel(self.address, self._credentials(), self._options())

    def aio_channel(self) -> grpc.aio.Channel:
        """A connection of the asyncio client."""
        return grpc.aio.secure_channel(self.address, self._credentials(), self._options())

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.ca.encode(), self.private_key.encode(), self.certificate.encode()
        )

    def _options(self) -> list[tuple[str, int | str]]:
        return [*_OPTIONS, ("grpc.ssl_target_name_override", self.server_name)]


def peer(authority: Authority, caller: str, address: str, server_name: str) -> Peer:
    """A caller (the URI of its certificate) of the server of that name."""
    pair = authority.issue(x509.UniformResourceIdentifier(caller))
    return Peer(
        address,
        server_name,
        authority.pem.decode(),
        pair.certificate.decode(),
        pair.private_key.decode(),
    )
