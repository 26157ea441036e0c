"""The CA replaced while a session runs: nothing that runs ends, no call fails, no word is lost."""

import base64
import secrets
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509

import cloister
from support.cluster import SANDBOXES, SYSTEM, get, kubectl, wait_for

pytestmark = [pytest.mark.disruptive, pytest.mark.timeout(600)]
OVERLAP = "CLOISTER_CA_OVERLAP_SECONDS"


def stored() -> dict[str, bytes]:
    found = get("secret", "cloister-ca", SYSTEM)
    assert found is not None
    return {key: base64.b64decode(value) for key, value in found["data"].items()}


def set_overlap(seconds: str) -> None:
    kubectl("set", "env", "deployment/cloister-operator", f"{OVERLAP}={seconds}", "-n", SYSTEM)
    kubectl("rollout", "status", "deployment/cloister-operator", "-n", SYSTEM, "--timeout=3m")


@pytest.fixture
def _short() -> Iterator[None]:
    """An overlap that a test can wait for."""
    set_overlap("20")
    yield
    set_overlap("7200")


def issuer(pem: bytes) -> str:
    return x509.load_pem_x509_certificate(pem).issuer.rfc4514_string()


def subjects(bundle: bytes) -> list[str]:
    return [each.subject.rfc4514_string() for each in x509.load_pem_x509_certificates(bundle)]


@pytest.mark.usefixtures("_short")
def test_a_session_works_through_a_rotation(
    client: cloister.Client, environments: Callable[..., str]
) -> None:
    networking = {"allowedHosts": ["allowed.example"]}
    environment = environments(pool={"size": 1}, networking=networking)
    with client.create_session(environment) as session:
        assert session.bash("X=kept; echo $X").text == "kept"
        before = stored()
        word = f"cloister.dev/rotate-ca={secrets.token_hex(4)}"
        kubectl("annotate", "secret", "cloister-ca", word, "-n", SYSTEM, "--overwrite")

        def works_until(change: Callable[[dict[str, bytes]], bool]) -> bool | None:
            assert session.bash("echo $X").text == "kept"
            return True if change(stored()) else None

        wait_for("a new CA", lambda: works_until(lambda now: "next.crt" in now))
        new = stored()["next.crt"]
        config = get("configmap", "cloister-client-config", SYSTEM)
        assert config is not None
        assert stored()["tls.crt"] == before["tls.crt"]
        wait_for("the new CA signing", lambda: works_until(lambda now: now["tls.crt"] == new), 180)
        # Its key is gone; what it certified is still trusted.
        after = stored()
        assert before["tls.key"] not in b"".join(after.values())
        assert before["tls.crt"] in after["former.crt"]
        assert session.bash("echo $X").text == "kept"

        # Another worker takes the same session over, with a certificate of the new CA.
        with cloister.Client(namespace=SANDBOXES) as another:
            same = another.get_session(session.name)
            assert issuer(same.credentials.certificate_pem) == subjects(new)[0]
            assert set(subjects(same.credentials.ca_pem)) == {
                *subjects(new),
                *subjects(before["tls.crt"]),
            }
            assert same.bash("echo $X").text == "kept"
            # And new sessions begin, on the pod that was warm all the time.
            with another.create_session(environment) as fresh:
                assert fresh.bash("echo new").text == "new"
                # The gateways know them, and what these decide is told, over connections that are
                # new since the operator has another certificate.
                fresh.bash("curl -sS http://denied.example/")
                wait_for("what was decided", lambda: another.session_egress(fresh.name) or None)
        # The worker of before goes on, with the certificate of before.
        assert issuer(session.credentials.certificate_pem) == subjects(before["tls.crt"])[0]
        assert session.bash("echo $X").text == "kept"
    # Who looked the CA up before it was replaced looks again.
    assert isinstance(client.list_sessions(), list)
