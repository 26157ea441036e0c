"""Certificates that callers make of what they have, shown to an exec server."""

import datetime
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from support.certificates import Pair, TestAuthority
from support.sandbox_server import OPERATOR, POD_NAME, SESSION_UID, Sandbox, sandbox

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
HOUR = datetime.timedelta(hours=1)
URI, DNS = x509.UniformResourceIdentifier, x509.DNSName


class Made:
    """A certificate with its key, which may sign others, whether it is a CA's or not."""

    def __init__(
        self,
        signer: "Made | None" = None,
        names: Sequence[x509.GeneralName] = (),
        *,
        subject: str = "made",
        usages: Sequence[ObjectIdentifier] = (CLIENT,),
        ca: bool = False,
        ends: datetime.timedelta = HOUR,
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(signer.subject if signer else self.subject)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 24 * HOUR)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        made = builder.sign(signer.key if signer else self.key, hashes.SHA256())
        self.pem = made.public_bytes(serialization.Encoding.PEM)

    def pair(self, *chain: "Made") -> Pair:
        """To be shown, with these certificates after it."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Pair(b"".join(each.pem for each in (self, *chain)), key)


class Authority(TestAuthority):
    """One that signs for each what the product's own does: a server is no client."""

    def __init__(self, ends: datetime.timedelta = HOUR) -> None:
        self.root = Made(ca=True, subject="the-ca", ends=ends)
        self.pem = self.root.pem

    def issue(self, *, dns: str = "", uri: str = "") -> Pair:
        """See TestAuthority."""
        name = URI(uri) if uri else DNS(dns)
        return Made(self.root, [name], usages=[CLIENT if uri else SERVER]).pair()


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("warm"), authority=Authority()) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        yield server


def asked(server: Sandbox, caller: Pair | None) -> grpc.StatusCode:
    with server.channel(caller, POD_NAME) as channel:
        try:
            exec_pb2_grpc.RuntimeStub(channel).Info(exec_pb2.InfoRequest(), timeout=60)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def root_of(server: Sandbox) -> Made:
    assert isinstance(server.authority, Authority)
    return server.authority.root


def strangers(root: Made) -> Iterator[tuple[str, Pair]]:
    """Whom no certificate of the CA's vouches for."""
    twin = Made(ca=True, subject="the-ca")
    operator = [URI(OPERATOR)]
    session = Made(root, [URI(f"session:{SESSION_UID}")])
    yield "a CA of the same name", Made(twin, operator).pair()
    yield "a CA of the same name, shown too", Made(twin, operator).pair(twin)
    yield "signed by a session's own certificate", Made(session, operator).pair(session)
    yield (
        "signed by what a session's certificate signed as a CA",
        Made(between := Made(session, ca=True), operator).pair(between, session),
    )
    yield "signed by nobody", Made(None, operator).pair()
    yield "a session's, after one of nobody", Made(None, operator).pair(session, root)
    yield "the key of the pod, a server's", Made(root, [DNS(POD_NAME)], usages=[SERVER]).pair()
    yield "a server's with the operator's name", Made(root, operator, usages=[SERVER]).pair()
    yield "for mail", Made(root, operator, usages=[ExtendedKeyUsageOID.EMAIL_PROTECTION]).pair()
    yield "over", Made(root, operator, ends=-HOUR).pair()
    many = [URI(f"operator:{each}") for each in range(2000)]
    yield "thousands of names", Made(None, [*operator, *many]).pair()
    yield "a long chain", Made(None, operator).pair(*[session] * 100)
    yield "a chain without end", Made(None, operator).pair(*[session] * 3000)


def test_only_the_ca_says_who_calls(warm: Sandbox) -> None:
    right = Made(root_of(warm), [URI(OPERATOR)]).pair()
    assert asked(warm, right) is grpc.StatusCode.OK
    for why, pair in strangers(root_of(warm)):
        assert asked(warm, pair) is grpc.StatusCode.UNAVAILABLE, why
        # It was the certificate: the server is there.
        assert asked(warm, right) is grpc.StatusCode.OK, why


@pytest.mark.parametrize(
    "names",
    [
        [],
        [DNS(OPERATOR.replace(":", "."))],
        [URI(OPERATOR.upper())],
        [URI(f"{OPERATOR}/")],
        [URI(f"{OPERATOR}%00")],
        [URI(f" {OPERATOR}")],
        [URI(f"session:{OPERATOR}")],
        [x509.RFC822Name("operator@cloister")],
    ],
    ids=repr,
)
def test_the_operators_name_is_one_uri_letter_by_letter(
    warm: Sandbox, names: list[x509.GeneralName]
) -> None:
    caller = Made(root_of(warm), names, subject=OPERATOR).pair()
    assert asked(warm, caller) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.long
def test_chains_without_end_take_no_memory(warm: Sandbox) -> None:
    def resident() -> int:
        status = Path(f"/proc/{warm.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s*(\d+) kB", status)
        assert found
        return int(found[1]) // 1024

    session = Made(root_of(warm), [URI(f"session:{SESSION_UID}")])
    huge = Made(None, [URI(OPERATOR)]).pair(*[session] * 3000)
    before = resident()
    for _ in range(40):
        assert asked(warm, huge) is grpc.StatusCode.UNAVAILABLE
    # 40 of them are more than 60 MB.
    assert resident() - before < 30
