"""What the CA signs, and what it refuses to sign."""

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from cloister_operator.identity import Authority, Identity

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
UID = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create(NOW)


def leaf(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.certificate_pem)


def san(identity: Identity) -> list[x509.GeneralName]:
    return list(
        leaf(identity).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    )


def purposes(identity: Identity) -> list[x509.ObjectIdentifier]:
    return list(leaf(identity).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def verifier(authority: Authority, when: datetime = NOW) -> PolicyBuilder:
    ca = x509.load_pem_x509_certificate(authority.ca_pem)
    return PolicyBuilder().store(Store([ca])).time(when)


def test_each_certificate_carries_exactly_its_name(authority: Authority) -> None:
    hour = timedelta(hours=1)
    assert san(authority.pod_server(UID, NOW)) == [x509.DNSName(f"pod-{UID}.sandbox.cloister.dev")]
    assert san(authority.session_server(UID, NOW, hour)) == [
        x509.DNSName(f"session-{UID}.sandbox.cloister.dev")
    ]
    assert san(authority.session_client(UID, NOW, hour)) == [
        x509.UniformResourceIdentifier(f"session:{UID}")
    ]
    assert san(authority.operator_client(NOW)) == [
        x509.UniformResourceIdentifier("operator:cloister")
    ]
    assert san(authority.sessions_api_server(NOW, ["sessions.cloister.dev"], ["10.0.0.7"])) == [
        x509.DNSName("sessions.cloister.dev"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.7")),
    ]


def test_servers_cannot_pose_as_clients_nor_clients_as_servers(authority: Authority) -> None:
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH
    hour = timedelta(hours=1)
    assert purposes(authority.pod_server(UID, NOW)) == [server]
    assert purposes(authority.session_server(UID, NOW, hour)) == [server]
    assert purposes(authority.sessions_api_server(NOW, ["sessions.cloister.dev"], [])) == [server]
    assert purposes(authority.session_client(UID, NOW, hour)) == [client]
    assert purposes(authority.operator_client(NOW)) == [client]


def test_a_strict_verifier_accepts_the_chain_for_its_name_only(authority: Authority) -> None:
    certificate = leaf(authority.pod_server(UID, NOW))
    name = f"pod-{UID}.sandbox.cloister.dev"
    verifier(authority).build_server_verifier(x509.DNSName(name)).verify(certificate, [])
    with pytest.raises(VerificationError):
        verifier(authority).build_server_verifier(
            x509.DNSName("pod-x.sandbox.cloister.dev")
        ).verify(certificate, [])
    with pytest.raises(VerificationError):
        verifier(Authority.create(NOW)).build_server_verifier(x509.DNSName(name)).verify(
            certificate, []
        )


def test_the_ca_signs_leaves_only(authority: Authority) -> None:
    ca = x509.load_pem_x509_certificate(authority.ca_pem)
    assert ca.extensions.get_extension_for_class(
        x509.BasicConstraints
    ).value == x509.BasicConstraints(ca=True, path_length=0)
    certificate = leaf(authority.pod_server(UID, NOW))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign


def test_the_key_belongs_to_the_certificate(authority: Authority) -> None:
    identity = authority.session_client(UID, NOW, timedelta(hours=1))
    key = serialization.load_pem_private_key(identity.private_key_pem, None)
    assert key.public_key() == leaf(identity).public_key()
    assert identity.ca_pem == authority.ca_pem
    assert identity.private_key_pem.decode() not in repr(identity)


@pytest.mark.parametrize(
    ("issue", "lifetime"),
    [
        (lambda a: a.pod_server(UID, NOW), timedelta(days=365)),
        (lambda a: a.session_server(UID, NOW, timedelta(hours=3)), timedelta(hours=4)),
        (lambda a: a.session_client(UID, NOW, timedelta(minutes=7)), timedelta(minutes=7)),
        (lambda a: a.operator_client(NOW), timedelta(days=90)),
        (lambda a: a.sessions_api_server(NOW, ["a.example"], []), timedelta(days=90)),
    ],
)
def test_lifetimes(
    authority: Authority, issue: Callable[[Authority], Identity], lifetime: timedelta
) -> None:
    identity = issue(authority)
    assert identity.not_after == leaf(identity).not_valid_after_utc == NOW + lifetime
    assert leaf(identity).not_valid_before_utc == NOW - timedelta(days=1)


def test_nothing_outlives_the_ca(authority: Authority) -> None:
    late = authority.not_after - timedelta(days=1)
    assert authority.operator_client(late).not_after == authority.not_after
    with pytest.raises(ValueError, match="expired"):
        authority.operator_client(authority.not_after)


def test_a_stored_ca_goes_on_signing(authority: Authority) -> None:
    data = authority.to_secret_data()
    again = Authority.from_pem(data["tls.crt"], data["tls.key"])
    assert again.ca_pem == authority.ca_pem
    certificate = leaf(again.pod_server(UID, NOW))
    name = x509.DNSName(f"pod-{UID}.sandbox.cloister.dev")
    verifier(authority).build_server_verifier(name).verify(certificate, [])


def test_an_unfit_ca_is_refused(authority: Authority) -> None:
    data = authority.to_secret_data()
    other = Authority.create(NOW).to_secret_data()
    plain = authority.pod_server(UID, NOW)
    for certificate, key in (
        (data["tls.crt"], other["tls.key"]),
        (plain.certificate_pem, plain.private_key_pem),
        (b"", data["tls.key"]),
        (data["tls.crt"], b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    ):
        with pytest.raises(ValueError, match=r"^the CA's") as failure:
            Authority.from_pem(certificate, key)
        assert "BEGIN" not in str(failure.value)


@pytest.mark.parametrize("uid", ["", "a.b", "a b", "x" * 56, "a\n", "é", "-a", "a/../b", "*"])
def test_impossible_uids_are_refused(authority: Authority, uid: str) -> None:
    hour = timedelta(hours=1)
    with pytest.raises(ValueError, match="not a UID"):
        authority.pod_server(uid, NOW)
    with pytest.raises(ValueError, match="not a UID"):
        authority.session_server(uid, NOW, hour)
    with pytest.raises(ValueError, match="not a UID"):
        authority.session_client(uid, NOW, hour)


def test_a_lifetime_must_be_positive(authority: Authority) -> None:
    for lifetime in (timedelta(0), timedelta(hours=-2)):
        with pytest.raises(ValueError, match="positive"):
            authority.session_client(UID, NOW, lifetime)
        with pytest.raises(ValueError, match="positive"):
            authority.session_server(UID, NOW, lifetime)
