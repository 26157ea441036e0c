"""The agent's TLS identity: files that the operator renews, read again when they have changed."""

import ssl
from pathlib import Path

import grpc

_FILES = ("tls.crt", "tls.key", "ca.crt")


class IdentityError(Exception):
    """There is no certificate to serve with; the message says what is wrong."""


class Identity:
    """Server credentials of a directory with tls.crt, tls.key and ca.crt."""

    def __init__(self, directory: Path) -> None:
        """Raises IdentityError when they cannot be read or do not fit."""
        self._directory = directory
        self._seen = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that demand a client certificate of the operator's CA."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(self._seen),
            self._renewed,  # type: ignore[arg-type] # the stubs do not know that None is an answer
            require_client_authentication=True,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the next handshake uses; None, what the last one used.

        A configuration is given once: handshakes share it, and giving another in its place while
        one is under way is a known hazard of gRPC's.
        """
        try:
            found = self._read()
        except IdentityError:
            return None  # half a renewal, or none: what is there goes on
        if found == self._seen:
            return None
        self._seen = found
        return self._configuration(found)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        # The kubelet swaps one link for all files: through it they always belong together.
        link = self._directory / "..data"
        folder = (link if link.exists() else self._directory).resolve()
        try:
            certificate, key, ca = ((folder / each).read_bytes() for each in _FILES)
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                folder / "tls.crt", folder / "tls.key"
            )
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(folder / "ca.crt")
        except OSError as error:  # ssl's errors are some, too
            raise IdentityError(f"{self._directory}: {error}") from None
        return certificate, key, ca

    @staticmethod
    def _configuration(files: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
        certificate, key, ca = files
        return grpc.ssl_server_certificate_configuration([(key, certificate)], ca)
