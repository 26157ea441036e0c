"""A private repository among an Environment's files, from a git server of the fake internet."""

import base64
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    SYSTEM,
    apply,
    environment,
    get,
    kubectl,
    listing,
    wait_condition,
    wait_gone,
    wait_reason,
)
from support.fake_internet import FakeInternet
from support.fake_internet_names import GIT, NAME_SERVER
from support.git_server import Repository

ROOT = Path(__file__).resolve().parents[2]
HELM = os.environ.get("HELM", "helm")
RESOLVER = "10.96.0.10"
"""Where the kubelet tells pods to ask for names; nothing is there in the bundled cluster."""
USER = "reader"
EVERYWHERE = "/workspace /tmp /home /run /etc /mnt /opt /var /proc/[0-9]*/environ /proc/*/cmdline"
pytestmark = pytest.mark.disruptive


@dataclass(frozen=True)
class Private:
    """The repository, and who may fetch it."""

    url: str
    commit: str
    password: str


@pytest.fixture(scope="module")
def _names(world: FakeInternet) -> Iterator[None]:
    """The cluster's resolver: it asks the internet's."""
    ports = [{"name": each.lower(), "port": 53, "protocol": each} for each in ("UDP", "TCP")]
    where = {"name": "e2e-resolver", "namespace": "default"}
    service = {"clusterIP": RESOLVER, "ports": ports}
    label = {"kubernetes.io/service-name": where["name"]}
    apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": where, "spec": service},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**where, "labels": label},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NAME_SERVER]}],
            "ports": ports,
        },
    )
    yield
    kubectl("delete", "service,endpointslice", where["name"], "-n", "default")


@pytest.fixture(scope="module")
def _allowed(world: FakeInternet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The platform lets the operator fetch from there."""
    folder = tmp_path_factory.mktemp("values")
    before, authority = folder / "values.yaml", folder / "ca.pem"
    before.write_text(_helm("get", "values", "cloister", "-n", SYSTEM, "-o", "yaml"))
    authority.write_text(world.ca)

    def upgrade(*more: str) -> None:
        _helm(
            *("upgrade", "cloister", "charts/cloister", "-n", SYSTEM, "-f", str(before)),
            *("--wait", "--timeout", "3m", *more),
        )

    upgrade("--set", f"git.allowedHosts[0]={GIT}", "--set-file", f"git.caBundle={authority}")
    try:
        yield
    finally:
        upgrade()


def _helm(*arguments: str) -> str:
    done = subprocess.run(
        [HELM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def private(world: FakeInternet, _names: None, _allowed: None) -> Private:
    """A repository that the server gives to one user."""
    password = f"p-{secrets.token_hex(16)}"
    world.repositories.mkdir()
    (world.repositories / "users.json").write_text(json.dumps({USER: password}))
    made = Repository(world.repositories / "project.git")
    commit = made.files({"README": b"of a private project\n", "run.py": b"print('it runs')\n"})
    return Private(f"https://{GIT}/project.git", commit, password)


def _login(name: str, password: str) -> None:
    apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "namespace": SANDBOXES,
                "labels": {"cloister.dev/git": "true"},
            },
            "stringData": {"username": USER, "password": password},
        }
    )


def _files(private: Private, login: str) -> list[dict[str, object]]:
    git = {"url": private.url, "ref": "main", "secretRef": {"name": login}}
    return [{"path": "/workspace/project", "readOnly": False, "git": git}]


def test_the_files_are_in_the_pod_and_the_credentials_nowhere(
    client: cloister.Client,
    environments: Callable[..., str],
    world: FakeInternet,
    private: Private,
    name: str,
) -> None:
    _login(name, private.password)
    mark = world.mark()
    try:
        env = environments(files=_files(private, name))
        found = get("environment", env)
        assert found is not None
        assert [each["commit"] for each in found["status"]["git"]] == [private.commit]
        header = base64.b64encode(f"{USER}:{private.password}".encode()).decode()
        # They were used: what is searched for below is what went over the wire.
        asked = [each for each in world.since(mark) if each.kind == "http" and each.host == GIT]
        assert any(header in str(each.headers) for each in asked)
        with client.create_session(env) as session:
            assert session.bash("cat project/README").text == "of a private project"
            assert session.bash("cd project && python3 run.py; ls -A").text == (
                "it runs\nREADME\nrun.py"
            )
            session.write("/tmp/known", "what-is-there-is-found")
            assert _holding(session, "what-is-there-is-found") == ["/tmp/known"]
            for needle in (private.password, header):
                _absent(session, env, needle)
    finally:
        kubectl("delete", "secret", name, "-n", SANDBOXES)


def _holding(session: "cloister.Session", needle: str) -> list[str]:
    """Files of the sandbox with these bytes, which are not in the command that looks for them."""
    coded = base64.b64encode(needle.encode()).decode()
    search = f"printf %s {coded} | base64 -d | grep -rlsF -f - {EVERYWHERE}; true"
    found = session.bash(search, timeout_ms=60_000).text.splitlines()
    return [each for each in found if each.startswith("/")]


def _absent(session: "cloister.Session", env: str, needle: str) -> None:
    """Neither in the pod nor in anything that tells of it."""
    assert _holding(session, needle) == []
    assert needle not in session.bash("env").text
    for kind in ("pods", "events", "environments", "sessions", "configmaps"):
        assert needle not in json.dumps(listing(kind)), kind
    for each in listing("secrets"):
        # Of the Environment's, and of the session's.
        if each["metadata"]["name"].startswith((env, session.name)):
            data = [base64.b64decode(value) for value in (each.get("data") or {}).values()]
            assert not any(needle.encode() in value for value in data), each["metadata"]["name"]
    assert needle not in json.dumps(listing("events", namespace=SYSTEM))
    operators = ("-l", "app.kubernetes.io/component=operator", "-n", SYSTEM)
    assert needle not in kubectl("logs", *operators, "--tail=-1", "--prefix").out
    assert needle not in kubectl("logs", session.pod_name, "-n", SANDBOXES).out


def test_wrong_credentials_are_told_and_right_ones_taken(
    client: cloister.Client, private: Private, name: str
) -> None:
    wrong = f"w-{secrets.token_hex(16)}"
    _login(name, wrong)
    apply(environment(name, files=_files(private, name)))
    try:
        for kind in ("GitFetched", "Ready"):
            found = wait_reason("environment", name, kind, ("GitFetchFailed",), 90)
            assert found["status"] == "False"
            assert "spec.files[0].git" in found["message"]
            assert "refuses these credentials" in found["message"]
            assert wrong not in found["message"]
        assert not listing("pods", f"cloister.dev/environment={name}")
        _login(name, private.password)
        wait_condition("environment", name, "Ready", deadline=120)
        with client.create_session(name) as session:
            assert session.bash("cat project/README").text == "of a private project"
    finally:
        kubectl("delete", "environment", name, "-n", SANDBOXES)
        kubectl("delete", "secret", name, "-n", SANDBOXES)
        wait_gone("environment", name)
