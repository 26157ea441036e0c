"""The server's TLS identity: the pod's until the claim, the session's afterwards.

The session's key never touches a disk. The pod's key is readable in its mount, and worthless after
the claim, because callers check the session's name.
"""

from dataclasses import dataclass
from pathlib import Path

import grpc

from .config import ConfigError


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its key, PEM."""

    certificate: bytes
    private_key: bytes


class ServerIdentity:
    """Hands a new certificate to the TLS handshakes that come after it.

    gRPC asks at every handshake. Whatever it is given replaces what all handshakes share, and one
    that another thread has just begun may then use what is freed already: the process crashes
    (grpc/grpc#36693). So a certificate is given out once, and gRPC keeps what it has otherwise.
    """

    def __init__(self, pair: KeyPair, ca: bytes) -> None:
        self._pair, self._ca = pair, ca
        self._initial = self._configuration()
        self._next: grpc.ServerCertificateConfiguration | None = None

    @classmethod
    def load(cls, directory: Path) -> "ServerIdentity":
        """Read tls.crt, tls.key and ca.crt; raises ConfigError when one is missing or empty."""
        parts = []
        for name in ("tls.crt", "tls.key", "ca.crt"):
            try:
                content = (directory / name).read_bytes()
            except OSError as error:
                raise ConfigError(
                    f"no identity, not serving: {directory / name}: {error.strerror}"
                ) from None
            if not content:
                raise ConfigError(f"no identity, not serving: {directory / name} is empty")
            parts.append(content)
        return cls(KeyPair(parts[0], parts[1]), parts[2])

    def replace(self, pair: KeyPair) -> None:
        """Use another certificate from the next handshake on."""
        self._pair = pair
        self._next = self._configuration()

    def trusts(self, ca: bytes) -> bool:
        """Whether these are the CAs whose certificates callers may show."""
        return ca == self._ca

    def trust(self, ca: bytes) -> None:
        """From the next handshake on accept callers that these CAs (PEM) certify, and no others."""
        self._ca = ca
        self._next = self._configuration()

    def credentials(self) -> grpc.ServerCredentials:
        """Server credentials that demand a client certificate of our CA."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial,
            self._take,  # type: ignore[arg-type] # the stubs do not know that None is an answer
            require_client_authentication=True,
        )

    def _take(self) -> grpc.ServerCertificateConfiguration | None:
        """What gRPC is to use from now on; None is what it has. It asks in one thread at a time."""
        taken, self._next = self._next, None
        return taken

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = self._pair
        return grpc.ssl_server_certificate_configuration(
            [(pair.private_key, pair.certificate)], self._ca
        )
