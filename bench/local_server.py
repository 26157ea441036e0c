"""Servers in processes of their own on loopback, with throw-away certificates, for benchmarks."""

import contextlib
import datetime
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
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


def write_identity(directory: Path, authority: Authority, dns: str) -> None:
    """Put tls.crt, tls.key and ca.crt for a DNS name where a server reads them."""
    directory.mkdir(parents=True)
    pair = authority.issue(x509.DNSName(dns))
    (directory / "tls.crt").write_bytes(pair.certificate)
    (directory / "tls.key").write_bytes(pair.private_key)
    (directory / "ca.crt").write_bytes(authority.pem)


def channel(authority: Authority, caller: str, port: int, server_name: str) -> grpc.Channel:
    """A channel of a caller (a certificate URI) to the server of that name on loopback."""
    pair = authority.issue(x509.UniformResourceIdentifier(caller))
    credentials = grpc.ssl_channel_credentials(authority.pem, pair.private_key, pair.certificate)
    options = [
        ("grpc.ssl_target_name_override", server_name),
        # Dialling a server that is still starting must not wait for gRPC's first backoff of 1 s.
        ("grpc.initial_reconnect_backoff_ms", 1),
        ("grpc.min_reconnect_backoff_ms", 1),
        ("grpc.max_reconnect_backoff_ms", 2),
    ]
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str], env: Mapping[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is ended afterwards."""
    process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], **env})
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=20)


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} is gone")
