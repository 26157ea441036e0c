"""The product's own CA and the certificates it signs.

Pure but for randomness: callers pass the present time and store what comes back. Names and rules:
docs/architecture.md, "Names" and "Identity". How a CA takes over from another: generations.
"""

import ipaddress
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from . import names

CA_LIFETIME = timedelta(days=3650)
POD_LIFETIME = timedelta(days=365)
"""A warm pod may wait long for its claim, and nothing renews its certificate."""
OPERATOR_LIFETIME = timedelta(days=90)
SERVER_MARGIN = timedelta(hours=1)
"""A session's server certificate outlives the session: it must not fail while the pod drains."""
BACKDATED = timedelta(days=1)
"""Clocks of nodes differ: what is issued by the API server's time is read by each node's own."""

# Small enough for one DNS label behind the prefix `session-`, and nothing that could end a label.
_UID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,53}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Identity:
    """A certificate, its key and the CAs that its owner trusts, PEM."""

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)
    ca_pem: bytes
    not_after: datetime


class Issuer:
    """One CA: it signs certificates with its key (ECDSA P-256), none of which outlives it."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key
        self._key_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
        self.ca_pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.not_after = certificate.not_valid_after_utc

    @classmethod
    def create(cls, now: datetime) -> "Issuer":
        """A new CA, valid for ten years; it can sign leaves only (path length 0)."""
        key = ec.generate_private_key(ec.SECP256R1())
        # No two have the same name: whoever trusts several finds the right one by it.
        name = _name(f"cloister-ca-{secrets.token_hex(4)}")
        subject_key = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(key.public_key(), name, name, now - BACKDATED, now + CA_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(subject_key, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def from_pem(cls, certificate_pem: bytes, private_key_pem: bytes) -> "Issuer":
        """The CA as it was stored; ValueError, without any of the input in it, when it is unfit.

        Unfit is: not PEM, not a CA, not an elliptic-curve key, or a key of another certificate.
        """
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            key = serialization.load_pem_private_key(private_key_pem, password=None)
            extensions = certificate.extensions
            is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
            raise ValueError("the CA's certificate or key cannot be read") from None
        if not is_ca or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the CA's certificate is no CA's, or its key is not ECDSA")
        if certificate.public_key() != key.public_key():
            raise ValueError("the CA's key does not belong to its certificate")
        return cls(certificate, key)

    @property
    def key_pem(self) -> bytes:
        """The CA's own key: whoever has it is anybody."""
        return _key_pem(self._key)

    def issue(
        self,
        common_name: str,
        san: Sequence[x509.GeneralName],
        now: datetime,
        lifetime: timedelta,
        trusted_pem: bytes,
        *,
        server: bool,
    ) -> Identity:
        """A leaf with these names; raises ValueError for a lifetime that is not positive, and when
        the CA itself has expired.
        """
        _check_lifetime(lifetime)
        if now >= self.not_after:
            raise ValueError(f"the CA expired at {self.not_after.isoformat()}")
        key = ec.generate_private_key(ec.SECP256R1())
        # X.509 knows whole seconds.
        end = min(now + lifetime, self.not_after).replace(microsecond=0)
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        certificate = (
            _builder(
                key.public_key(),
                _name(common_name),
                self._certificate.subject,
                now - BACKDATED,
                end,
            )
            .add_extension(x509.SubjectAlternativeName(san), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(self._key_id, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Identity(
            certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key), trusted_pem, end
        )


class Authority:
    """What this process issues certificates with, and whom their owners are to trust.

    All methods that issue raise ValueError for a UID that cannot be part of a DNS name, for a
    lifetime that is not positive, and when the CA itself has expired. No certificate outlives the
    CA. Where the CA is rotated, `replace` gives the same object another one.
    """

    def __init__(self, issuing: Issuer, also_trusted: Sequence[bytes] = ()) -> None:
        """`also_trusted`: certificates of other CAs, PEM."""
        self.replace(issuing, also_trusted)

    def replace(self, issuing: Issuer, also_trusted: Sequence[bytes] = ()) -> None:
        """Issue with this CA from now on, and let these be trusted too."""
        self._issuer = issuing
        self.issuer_pem = issuing.ca_pem
        """The CA that signs."""
        self.ca_pem = b"".join((issuing.ca_pem, *also_trusted))
        """All that are to be trusted, the one that signs first."""
        self.not_after = issuing.not_after

    @classmethod
    def create(cls, now: datetime) -> "Authority":
        """With a new CA alone."""
        return cls(Issuer.create(now))

    @classmethod
    def from_pem(cls, certificate_pem: bytes, private_key_pem: bytes) -> "Authority":
        """With a CA that was stored; see Issuer.from_pem."""
        return cls(Issuer.from_pem(certificate_pem, private_key_pem))

    def to_secret_data(self) -> dict[str, bytes]:
        """What `from_pem` needs, under the keys of a kubernetes.io/tls Secret."""
        return {"tls.crt": self.issuer_pem, "tls.key": self._issuer.key_pem}

    def pod_server(self, pod_uid: str, now: datetime) -> Identity:
        """What the exec server shows before the claim."""
        dns = x509.DNSName(names.pod_server_name(_checked(pod_uid)))
        return self._issue(dns.value, [dns], now, POD_LIFETIME, server=True)

    def session_server(self, session_uid: str, now: datetime, lifetime: timedelta) -> Identity:
        """What the exec server shows after the claim, for the session's lifetime and an hour."""
        dns = x509.DNSName(names.session_server_name(_checked(session_uid)))
        _check_lifetime(lifetime)
        return self._issue(dns.value, [dns], now, lifetime + SERVER_MARGIN, server=True)

    def session_client(self, session_uid: str, now: datetime, lifetime: timedelta) -> Identity:
        """What a session's worker shows to its own exec server."""
        uri = x509.UniformResourceIdentifier(names.session_uri(_checked(session_uid)))
        return self._issue(uri.value, [uri], now, lifetime, server=False)

    def operator_client(self, now: datetime) -> Identity:
        """What the operator shows to exec servers."""
        uri = x509.UniformResourceIdentifier(names.OPERATOR_URI)
        return self._issue(uri.value, [uri], now, OPERATOR_LIFETIME, server=False)

    def egress_gateway_server(self, now: datetime) -> Identity:
        """What egress gateways show to the operator."""
        dns = x509.DNSName(names.EGRESS_GATEWAY)
        return self._issue(dns.value, [dns], now, OPERATOR_LIFETIME, server=True)

    def sessions_api_server(
        self, now: datetime, dns_names: Sequence[str], ip_addresses: Sequence[str]
    ) -> Identity:
        """What the Sessions API shows; ValueError for a malformed name or address, or no name."""
        if not dns_names:
            raise ValueError("the Sessions API needs at least one DNS name")
        san: list[x509.GeneralName] = [x509.DNSName(each) for each in dns_names]
        san += [x509.IPAddress(ipaddress.ip_address(each)) for each in ip_addresses]
        return self._issue(dns_names[0], san, now, OPERATOR_LIFETIME, server=True)

    def _issue(
        self,
        common_name: str,
        san: Sequence[x509.GeneralName],
        now: datetime,
        lifetime: timedelta,
        *,
        server: bool,
    ) -> Identity:
        return self._issuer.issue(common_name, san, now, lifetime, self.ca_pem, server=server)


def _checked(uid: str) -> str:
    if not _UID.fullmatch(uid):
        raise ValueError(f"not a UID: {uid[:64]!r}")
    return uid


def _check_lifetime(lifetime: timedelta) -> None:
    if lifetime <= timedelta(0):
        raise ValueError(f"a certificate's lifetime must be positive, not {lifetime}")


def _name(common_name: str) -> x509.Name:
    # 64 is X.509's limit for a common name; nobody decides by it, names are in the SAN.
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name[:64])])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
