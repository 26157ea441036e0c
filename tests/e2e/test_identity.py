"""Who may drive a sandbox: the owner of its session's certificate, and nobody else."""

import contextlib
import datetime
from collections.abc import Callable, Iterator

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import cloister
from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc


@pytest.fixture(scope="module")
def pair(
    client: cloister.Client, environments: Callable[..., str]
) -> Iterator[tuple["cloister.Session", "cloister.Session"]]:
    env = environments(pool={"size": 2})
    with client.create_session(env) as first, client.create_session(env) as second:
        yield first, second


@contextlib.contextmanager
def channel(
    session: "cloister.Session", credentials: grpc.ChannelCredentials
) -> Iterator[grpc.Channel]:
    with session.reach() as address:
        options = [("grpc.ssl_target_name_override", session.server_name)]
        with grpc.secure_channel(address, credentials, options) as made:
            yield made


def call(made: grpc.Channel) -> str:
    """Run a command over the channel; returns its output."""
    request = exec_pb2.CallRequest(request_id="e2e", tool="bash")
    request.input.update({"command": "echo reached"})
    events = exec_pb2_grpc.ToolsStub(made).Call(request, timeout=10)
    return next(event.result for event in events if event.HasField("result")).content[0].text


def credentials(session: "cloister.Session") -> grpc.ChannelCredentials:
    own = session.credentials
    return grpc.ssl_channel_credentials(own.ca_pem, own.private_key_pem, own.certificate_pem)


def self_made(uri: str) -> tuple[bytes, bytes]:
    """A certificate with the right name, signed by a CA of our own."""
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cloister")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def test_the_sessions_own_certificate_is_accepted(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    with channel(first, credentials(first)) as made:
        assert call(made) == "reached"


def test_no_certificate_is_refused(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    with channel(first, grpc.ssl_channel_credentials(first.credentials.ca_pem)) as made:
        with pytest.raises(grpc.RpcError) as failure:
            call(made)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_foreign_ca_is_refused(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    certificate, key = self_made(f"session:{first.uid}")
    foreign = grpc.ssl_channel_credentials(first.credentials.ca_pem, key, certificate)
    with channel(first, foreign) as made:
        with pytest.raises(grpc.RpcError) as failure:
            call(made)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


def test_another_sessions_certificate_is_refused(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, second = pair
    with channel(first, credentials(second)) as made:
        with pytest.raises(grpc.RpcError) as failure:
            call(made)
        assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_worker_may_not_call_what_is_the_operators(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    with channel(first, credentials(first)) as made:
        with pytest.raises(grpc.RpcError) as failure:
            exec_pb2_grpc.RuntimeStub(made).Claim(exec_pb2.ClaimRequest(session_uid="x"), timeout=5)
        assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_the_key_in_the_pod_opens_nothing(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    """What tools can read of the pod's identity neither proves nor opens a session."""
    first, second = pair
    mounted = "/run/cloister/identity"
    certificate = first.bash(f"cat {mounted}/tls.crt").text.encode()
    key = first.bash(f"cat {mounted}/tls.key").text.encode()
    if b"PRIVATE KEY" in key:
        names = (
            x509.load_pem_x509_certificate(certificate)
            .extensions.get_extension_for_class(x509.SubjectAlternativeName)
            .value.get_values_for_type(x509.DNSName)
        )
        assert first.server_name not in names
        stolen = grpc.ssl_channel_credentials(second.credentials.ca_pem, key, certificate)
        for target in pair:
            with channel(target, stolen) as made, pytest.raises(grpc.RpcError) as failure:
                call(made)
            assert failure.value.code() in (
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.UNAVAILABLE,
            )


def test_tools_cannot_read_the_servers_memory_or_stop_it(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    assert first.bash("cat /proc/1/environ").is_error
    assert first.bash("head -c1 /proc/1/mem").is_error
    first.bash("kill -9 1; kill -STOP 1")
    # A queued signal says what it likes about its sender: here, that it is the kubelet's.
    forged = "struct.pack_into('iiiiii', info, 0, 15, 0, -1, 0, 0, 1000)"
    queue = "libc.syscall({'x86_64': 129, 'aarch64': 138}[os.uname().machine], 1, 15, info)"
    sent = first.bash(
        'python3 -c "import ctypes, os, struct; info = ctypes.create_string_buffer(128); '
        f'libc = ctypes.CDLL(None); {forged}; print({queue})"'
    )
    assert sent.text == "0"
    assert first.bash("sleep 1; echo alive").text == "alive"
