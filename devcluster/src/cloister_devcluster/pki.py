"""The cluster's certificates, made with openssl when the cluster starts and gone with its state."""

import base64
import json
import subprocess
from pathlib import Path

from .components import Config, certificates
from .errors import ClusterError

DAYS = "3650"
CURVE = ("-pkeyopt", "ec_paramgen_curve:P-256")


def make(config: Config) -> None:
    """Write the CA, every certificate and the key that signs service account tokens."""
    folder = config.places.pki
    _issue(folder, "ca", {"CN": f"cloister-{config.places.id}"}, _CA_EXTENSIONS, by="")
    for name, (subject, alternatives) in certificates(config).items():
        extensions = _LEAF_EXTENSIONS
        if alternatives:
            extensions += f"subjectAltName = {alternatives}\n"
        _issue(folder, name, subject, extensions, by="ca")
    _openssl("genpkey", "-algorithm", "EC", *CURVE, "-out", str(folder / "sa.key"))
    _openssl("pkey", "-in", str(folder / "sa.key"), "-pubout", "-out", str(folder / "sa.pub"))


def kubeconfig(config: Config) -> str:
    """A kubeconfig for the person at this machine, that needs no other file."""

    def embedded(name: str) -> str:
        return base64.b64encode((config.places.pki / name).read_bytes()).decode()

    cluster = {"server": config.server, "certificate-authority-data": embedded("ca.crt")}
    user = {
        "client-certificate-data": embedded("admin.crt"),
        "client-key-data": embedded("admin.key"),
    }
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cloister", "cluster": cluster}],
        "users": [{"name": "admin", "user": user}],
        "contexts": [{"name": "cloister", "context": {"cluster": "cloister", "user": "admin"}}],
        "current-context": "cloister",
    }
    return json.dumps(content, indent=1) + "\n"


_CA_EXTENSIONS = """\
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,digitalSignature
subjectKeyIdentifier = hash
"""
_LEAF_EXTENSIONS = """\
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def _issue(folder: Path, name: str, subject: dict[str, str], extensions: str, by: str) -> None:
    settings = folder / f"{name}.cnf"
    lines = "".join(f"{key} = {value}\n" for key, value in subject.items())
    settings.write_text(
        "[req]\ndistinguished_name = subject\nx509_extensions = extensions\nprompt = no\n"
        f"[subject]\n{lines}[extensions]\n{extensions}"
    )
    command = ["req", "-x509", "-newkey", "ec", *CURVE, "-nodes", "-days", DAYS]
    command += ["-config", str(settings)]
    command += ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")]
    if by:
        command += ["-CA", str(folder / f"{by}.crt"), "-CAkey", str(folder / f"{by}.key")]
    _openssl(*command)
    settings.unlink()


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`openssl {arguments[0]}` failed: {done.stderr.strip()}")
