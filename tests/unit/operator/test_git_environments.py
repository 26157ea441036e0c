"""Environments with git repositories: new pods have the files before they are warm."""

import base64
import io
import json
import logging
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.cluster import resources
from cloister_operator.cluster.resources import ENVIRONMENTS, SECRETS
from cloister_operator.controller import environments
from cloister_operator.sources.cache import Cache
from cloister_operator.sources.fetcher import Fetcher
from support.fake_operator import Operator, World
from support.git_server import HOST, GitServer, git_server
from support.operator_objects import NAMESPACE

PASSWORD = "s3cret-of-the-git-server"
PATH = "/workspace/project"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with git_server(tmp_path) as running:
        yield running


@pytest.fixture
def git_world(server: GitServer, make_world: Callable[..., World]) -> World:
    return make_world(git_allowed_hosts=(f"{HOST}:{server.port}",), git_refresh_seconds=0.0)


async def loopback(_host: str, _port: int) -> str:
    return "127.0.0.1"


def start(world: World, server: GitServer, cache: Path) -> Operator:
    operator = world.start()
    operator.context.repositories.fetches = Fetcher(Cache(cache), loopback, server.ca_pem)
    return operator


def file(server: GitServer, **git: Any) -> dict[str, Any]:
    git = {"url": server.url("project.git"), "ref": "main", **git}
    return {"path": PATH, "readOnly": False, "git": git}


def login(world: World, password: str = PASSWORD, **labels: str) -> dict[str, str]:
    data = {"username": "me", "password": password}
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "git-login",
            "namespace": NAMESPACE,
            "labels": {names.GIT_LABEL: "true", **labels},
        },
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
    }
    world.cluster.create(SECRETS, NAMESPACE, body)
    return {"name": "git-login"}


def delivered(world: World) -> dict[str, dict[str, bytes]]:
    """By pod, the files that it was given at PATH."""
    found = {}
    for uid, trees in world.sandboxes.delivered.items():
        with tarfile.open(fileobj=io.BytesIO(trees[PATH])) as archive:
            files = {each.name: archive.extractfile(each) for each in archive if each.isreg()}
            found[uid] = {name: each.read() for name, each in files.items() if each}
    return found


async def test_pods_have_the_files_before_they_are_warm(
    git_world: World, server: GitServer, tmp_path: Path
) -> None:
    commit = server.repository("project.git").files({"a.txt": b"a"})
    git_world.apply_environment(files=[file(server)], pool={"size": 3})
    operator = start(git_world, server, tmp_path / "cache")
    await operator.until(lambda: git_world.pool_is(3))
    pods = {each["metadata"]["uid"] for each in git_world.pods()}
    assert delivered(git_world) == {each: {"a.txt": b"a"} for each in pods}
    environment = git_world.environment()
    assert environment["status"]["git"] == [
        {"path": PATH, "url": server.url("project.git"), "ref": "main", "commit": commit}
    ]
    assert git_world.condition(environment) == ("True", "Available")
    assert git_world.condition(environment, "GitFetched") == ("True", "Fetched")
    # Once for all of them; a look at the branch is no fetch.
    assert server.fetched == 1
    git_world.apply_session("s1")
    await operator.until(lambda: git_world.served("s1"))


async def test_a_branch_that_moves_reaches_new_pods(
    git_world: World, server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "RECHECKED_AFTER_SECONDS", 0.0)
    repository = server.repository("project.git")
    repository.files({"a.txt": b"old"})
    git_world.apply_environment(files=[file(server)])
    operator = start(git_world, server, tmp_path / "cache")
    await operator.until(lambda: git_world.pool_is(1))
    before = git_world.environment()["status"]["recipeHash"]
    (old,) = (each["metadata"]["uid"] for each in git_world.pods())
    commit = repository.files({"a.txt": b"new"})
    operator.look()
    await operator.until(lambda: git_world.environment()["status"]["git"][0]["commit"] == commit)
    await operator.until(
        lambda: git_world.pool_is(1) and git_world.pods()[0]["metadata"]["uid"] != old
    )
    assert git_world.environment()["status"]["recipeHash"] != before
    (new,) = git_world.pods()
    assert delivered(git_world)[new["metadata"]["uid"]] == {"a.txt": b"new"}


async def test_the_credentials_are_nowhere_but_in_their_secret(
    git_world: World, server: GitServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.repository("project.git").files({"a.txt": b"a"})
    server.users = {"me": PASSWORD}
    secret = login(git_world)
    git_world.apply_environment(files=[file(server, secretRef=secret)])
    git_world.apply_environment("wrong", files=[file(server, secretRef=secret, ref="nowhere")])
    operator = start(git_world, server, tmp_path / "cache")
    await operator.until(lambda: git_world.pool_is(1))
    await operator.until(
        lambda: git_world.condition(git_world.environment("wrong")) == ("False", "GitFetchFailed")
    )
    assert any(who for _, who in server.asked)
    header = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    forbidden = [PASSWORD, base64.b64encode(PASSWORD.encode()).decode(), header]
    everything = {
        f"{each.plural} {obj['metadata']['name']}": json.dumps(obj)
        for each in vars(resources).values()
        if isinstance(each, resources.Resource)
        for obj in git_world.cluster.all(each)
        if obj["metadata"]["name"] != "git-login"
    }
    assert len(everything) > 5
    everything["log"] = caplog.text
    for archive in (tmp_path / "cache").rglob("*"):
        everything[archive.name] = (
            archive.read_bytes().decode("latin-1") if archive.is_file() else ""
        )
    decoded = {
        f"{where} {key}": base64.b64decode(value).decode("latin-1")
        for where, text in everything.items()
        if '"kind": "Secret"' in text
        for key, value in (json.loads(text).get("data") or {}).items()
    }
    for where, text in (everything | decoded).items():
        assert not any(each in text for each in forbidden), where


async def test_wrong_credentials_are_said_with_their_field(
    git_world: World, server: GitServer, tmp_path: Path
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    server.users = {"me": PASSWORD}
    git_world.apply_environment(files=[file(server, secretRef=login(git_world, "guess"))])
    operator = start(git_world, server, tmp_path / "cache")
    await operator.until(
        lambda: git_world.condition(git_world.environment()) == ("False", "GitFetchFailed")
    )
    (message,) = {
        each["message"]
        for each in git_world.environment()["status"]["conditions"]
        if each["reason"] == "GitFetchFailed"
    }
    assert message.startswith("spec.files[0].git: repository https://")
    assert "refuses these credentials" in message
    assert git_world.pods() == []


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({names.ALLOW_LABEL: "true"}, "ReferenceRefused"),
        ({names.GIT_LABEL: "no"}, "ReferenceRefused"),
    ],
)
async def test_a_secret_that_is_not_for_git_is_not_sent(
    git_world: World, server: GitServer, tmp_path: Path, labels: dict[str, str], reason: str
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    git_world.apply_environment(files=[file(server, secretRef=login(git_world, **labels))])
    operator = start(git_world, server, tmp_path / "cache")
    await operator.until(lambda: git_world.condition(git_world.environment()) == ("False", reason))
    assert server.asked == []


async def test_a_host_that_is_not_allowed_is_never_asked(
    make_world: Callable[..., World], server: GitServer, tmp_path: Path
) -> None:
    world = make_world()
    server.repository("project.git").files({"a.txt": b"a"})
    world.apply_environment(files=[file(server)])
    operator = start(world, server, tmp_path / "cache")
    await operator.until(
        lambda: world.condition(world.environment()) == ("False", "GitFetchFailed")
    )
    await operator.settle()
    assert server.asked == []


async def test_without_an_answer_the_last_commit_stays_over_a_restart(
    git_world: World, server: GitServer, tmp_path: Path
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    git_world.apply_environment(files=[file(server)])
    first = start(git_world, server, tmp_path / "cache")
    await first.until(lambda: git_world.pool_is(1))
    recipe = git_world.environment()["status"]["recipeHash"]
    await first.kill()
    await first.context.repositories.close()

    async def nowhere(_host: str, _port: int) -> str:
        return "127.0.0.2"

    second = git_world.start()
    second.context.repositories.fetches = Fetcher(Cache(tmp_path / "other"), nowhere, server.ca_pem)
    await second.until(
        lambda: (
            git_world.condition(git_world.environment(), "GitFetched")
            == ("False", "GitFetchFailed")
        )
    )
    git_world.apply_session("s1")
    await second.until(lambda: git_world.served("s1"))
    assert git_world.environment()["status"]["recipeHash"] == recipe
    assert git_world.condition(git_world.environment()) != ("False", "GitFetchFailed")
    # The server answers again: what waited for files gets them.
    second.context.repositories.fetches = Fetcher(
        Cache(tmp_path / "third"), loopback, server.ca_pem
    )
    await second.until(lambda: git_world.pool_is(1))


async def test_a_pod_that_waits_for_what_nobody_names_any_more_is_replaced(
    git_world: World, server: GitServer, tmp_path: Path
) -> None:
    repository = server.repository("project.git")
    repository.files({"a.txt": b"a"})
    git_world.sandboxes.answering.clear()
    git_world.apply_environment(files=[file(server)])
    operator = start(git_world, server, tmp_path / "cache")
    await operator.until(lambda: len(git_world.pods()) == 1)
    other = {"files": [{"path": "/etc/x", "content": "x"}]}
    git_world.cluster.patch_spec(ENVIRONMENTS, NAMESPACE, "py", other)
    git_world.sandboxes.answering.set()
    await operator.until(lambda: git_world.pool_is(1))
    assert names.GIT_TREES not in (git_world.pods()[0]["metadata"].get("annotations") or {})
