"""Throw-away certificates in the shape of the operator's."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_LIFETIME = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM."""

    certificate: bytes
    private_key: bytes


class Authority:
    """A CA of one run; its certificates have the shape of the operator's (ECDSA P-256)."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench-ca")])
        ca = x509.BasicConstraints(ca=True, path_length=0)
        self.pem = self._sign(self._name, self._key.public_key(), ca)

    def issue(self, name: x509.GeneralName) -> Pair:
        """A certificate for one DNS name or URI."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
        certificate = self._sign(subject, key.public_key(), x509.SubjectAlternativeName([name]))
        return Pair(
            certificate,
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + _LIFETIME)
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def identity(authority: Authority, dns: str) -> dict[str, bytes]:
    """The files tls.crt, tls.key and ca.crt of the server of a DNS name."""
    pair = authority.issue(x509.DNSName(dns))
    return {"tls.crt": pair.certificate, "tls.key": pair.private_key, "ca.crt": authority.pem}


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    """Put files into a new directory."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
