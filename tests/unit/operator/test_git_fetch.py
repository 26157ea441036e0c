"""Repositories are fetched from a real git server, over HTTPS, and no further than they may."""

import asyncio
import contextlib
import json
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cloister_operator.controller.git_servers import fetcher as fetcher_of
from cloister_operator.controller.git_servers import resolver
from cloister_operator.sources import trees, work
from cloister_operator.sources.cache import Cache
from cloister_operator.sources.fetcher import Fetcher, FetchFailed
from cloister_operator.sources.fetcher import _read as read_answer
from cloister_operator.sources.work import Credentials, Fetched
from support.eventually import until
from support.git_server import HOST, GitServer, git_server
from support.operator_objects import settings

pytestmark = pytest.mark.long


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with git_server(tmp_path) as running:
        yield running


async def loopback(_host: str, _port: int) -> str:
    return "127.0.0.1"


@pytest.fixture
async def fetcher(server: GitServer, tmp_path: Path) -> AsyncIterator[Fetcher]:
    yield Fetcher(Cache(tmp_path / "cache"), loopback, server.ca_pem)
    # What a fetch needed for itself is gone, however it ended.
    assert [each.name for each in (tmp_path / "cache").iterdir() if each.is_dir()] == []


def members(archive: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive) as opened:
        return {each.name: each for each in opened.getmembers()}


def content(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as opened:
        file = opened.extractfile(name)
        assert file is not None
        return file.read()


async def refused(fetcher: Fetcher, url: str, ref: str | None = None) -> FetchFailed:
    with pytest.raises(FetchFailed) as caught:
        await fetcher.fetch("team", url, ref, None)
    return caught.value


async def test_a_branch_a_tag_and_a_commit_are_fetched(server: GitServer, fetcher: Fetcher) -> None:
    repository = server.repository("project.git")
    old = repository.files({"a.txt": b"old"})
    repository.git("tag", "-a", "v1", "-m", "first", old)
    tag = repository.git("rev-parse", "refs/tags/v1")
    new = repository.files({"a.txt": b"new"})
    other = repository.files({"a.txt": b"other"}, branch="feature/x")
    for ref, commit, text in (
        (None, new, b"new"),
        ("main", new, b"new"),
        ("feature/x", other, b"other"),
        ("v1", tag, b"old"),
        ("refs/tags/v1", tag, b"old"),
        (old, old, b"old"),
    ):
        found, archive = await fetcher.fetch("team", server.url("project.git"), ref, None)
        assert (ref, found.commit, content(archive, "a.txt")) == (ref, commit, text)


async def test_files_links_and_directories_come_as_they_are(
    server: GitServer, fetcher: Fetcher
) -> None:
    repository = server.repository("project.git")
    blob, link = repository.blob(b"#!/bin/sh\n"), repository.blob(b"../run")
    out, absolute = repository.blob(b"../../etc"), repository.blob(b"/etc/passwd")
    inner = repository.tree(
        ("120000", absolute, "absolute"),
        ("120000", link, "inside"),
        ("160000", "1" * 40, "module"),
        ("120000", out, "outside"),
    )
    repository.commit(repository.tree(("40000", inner, "dir"), ("100755", blob, "run")))
    found, archive = await fetcher.fetch("team", server.url("project.git"), "main", None)
    there = members(archive)
    assert set(there) == {"dir", "dir/inside", "dir/module", "run"}
    assert there["dir/inside"].linkname == "../run"
    assert there["dir/module"].isdir()
    assert there["run"].mode == 0o755
    assert found.left_out == 2


async def test_what_is_there_already_is_not_fetched_again(
    server: GitServer, fetcher: Fetcher
) -> None:
    commit = server.repository("project.git").files({"a.txt": b"a"})
    _, first = await fetcher.fetch("team", server.url("project.git"), "main", None)
    server.asked.clear()
    again, second = await fetcher.fetch("team", server.url("project.git"), "main", None)
    assert (again, second) == (Fetched(commit), first)
    assert server.fetched == 1
    server.asked.clear()
    assert (await fetcher.fetch("team", server.url("project.git"), commit, None))[1] == first
    assert server.asked == []
    # Another namespace has to be let in by the server itself.
    await fetcher.fetch("others", server.url("project.git"), commit, None)
    assert server.asked


async def test_credentials_are_sent_and_wrong_ones_refused(
    server: GitServer, fetcher: Fetcher
) -> None:
    commit = server.repository("project.git").files({"a.txt": b"a"})
    server.users = {"me": "pässword:with colon"}
    url = server.url("project.git")
    good = Credentials("me", "pässword:with colon")
    _, archive = await fetcher.fetch("team", url, "main", good)
    assert content(archive, "a.txt") == b"a"
    for wrong in (Credentials("me", "s3cret-guess"), None):
        with pytest.raises(FetchFailed) as caught:
            await fetcher.fetch("team", url, "main", wrong)
        assert caught.value.problem == "refused"
        assert "guess" not in str(caught.value)
    # Not even by its commit, which somebody with the right ones has fetched.
    with pytest.raises(FetchFailed):
        await fetcher.fetch("team", url, commit, None)


async def test_credentials_are_in_no_argument_and_no_variable(
    server: GitServer, tmp_path: Path
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    server.users = {"me": "s3cret-of-the-server"}
    seen: list[bytes] = []
    fetcher = Fetcher(Cache(tmp_path / "cache"), loopback, server.ca_pem)
    server.asked = _Watch(seen)
    await fetcher.fetch(
        "team", server.url("project.git"), "main", Credentials("me", "s3cret-of-the-server")
    )
    assert seen
    assert not any(b"s3cret" in each for each in seen)


class _Watch(list[tuple[str, str | None]]):
    """Looks at the processes of this user whenever the server is asked."""

    def __init__(self, seen: list[bytes]) -> None:
        super().__init__()
        self._seen = seen

    def append(self, asked: tuple[str, str | None]) -> None:
        super().append(asked)
        for each in Path("/proc").iterdir():
            if not each.name.isdigit() or int(each.name) == os.getpid():
                continue
            try:
                line = (each / "cmdline").read_bytes()
                if b"cloister_operator.sources.child" in line:
                    self._seen.append(line + (each / "environ").read_bytes())
            except OSError:
                continue


async def test_who_waits_for_the_same_shares_its_failure(
    server: GitServer, fetcher: Fetcher
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    url = server.url("project.git")
    found = await asyncio.gather(
        *(fetcher.fetch("team", url, "nowhere", None) for _ in range(5)), return_exceptions=True
    )
    assert {getattr(each, "problem", None) for each in found} == {"no-ref"}
    assert len([path for path, _ in server.asked if "info/refs" in path]) == 1
    await refused(fetcher, url, "nowhere")
    assert len([path for path, _ in server.asked if "info/refs" in path]) == 2


async def test_a_fetch_that_is_called_off_leaves_nothing(
    server: GitServer, fetcher: Fetcher
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    gate = server.gate = threading.Event()
    fetch = asyncio.create_task(fetcher.fetch("team", server.url("project.git"), "main", None))
    await until(lambda: server.asked, pause=0.01)
    for _ in range(3):
        # Again while its process ends.
        fetch.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await fetch
    gate.set()
    assert not any(b"cloister_operator.sources.child" in each for each in commands_of_ours())


def commands_of_ours() -> Iterator[bytes]:
    """Command lines of this process's children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for each in children:
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{each}/cmdline").read_bytes()


async def test_a_ref_that_is_missing(server: GitServer, fetcher: Fetcher) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    for ref in ("nowhere", "refs/heads/nowhere", "2" * 40):
        error = await refused(fetcher, server.url("project.git"), ref)
        assert (ref, error.problem) == (ref, "no-ref")
        assert ref in str(error)


async def test_a_repository_that_is_missing(server: GitServer, fetcher: Fetcher) -> None:
    assert (await refused(fetcher, server.url("nothing.git"))).problem == "missing"


async def test_a_redirect_to_another_host_is_not_followed(
    server: GitServer, fetcher: Fetcher, tmp_path: Path
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with git_server(elsewhere) as other:
        for target in (
            f"https://{HOST}:{other.port}",
            "https://127.0.0.1",
            "http://169.254.169.254",
        ):
            server.redirect = target
            with pytest.raises(FetchFailed) as caught:
                await fetcher.fetch(
                    "team", server.url("project.git"), "main", Credentials("a", "b")
                )
            assert caught.value.problem == "redirected"
        assert other.asked == []


async def test_a_server_of_another_name_is_not_trusted(server: GitServer, tmp_path: Path) -> None:
    server.repository("project.git").files({"a.txt": b"a"})
    fetcher = Fetcher(Cache(tmp_path / "cache"), loopback, server.ca_pem)
    url = server.url("project.git").replace(HOST, "git.example.org")
    assert (await refused(fetcher, url)).problem == "untrusted"
    assert (await refused(Fetcher(Cache(tmp_path / "other"), loopback), url)).problem == "untrusted"
    assert server.asked == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "169.254.169.254", "10.96.0.1", "192.168.1.1", "100.100.100.200"),
        *("168.63.129.16", "0.0.0.0", "::1", "::ffff:93.184.216.34", "fd00:ec2::254", "fe80::1"),
        *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "45.83.64.1", "not an address"),
    ],
)
async def test_a_name_that_leads_inside_is_not_dialed(
    server: GitServer, tmp_path: Path, address: str
) -> None:
    server.repository("project.git").files({"a.txt": b"a"})

    async def rebound(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34", address]

    resolve = resolver(settings(), lambda: ("45.83.64.0/24",), rebound)
    fetcher = Fetcher(Cache(tmp_path / "cache"), resolve, server.ca_pem)
    assert (await refused(fetcher, server.url("project.git"))).problem == "not-allowed"
    assert server.asked == []


async def test_private_addresses_that_the_platform_names_are_dialed_and_no_others() -> None:
    async def found(host: str, _port: int) -> list[str]:
        return [host]

    allowed = settings(git_private_ranges=("10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16"))
    resolve = resolver(allowed, lambda: ("10.96.0.0/12",), found)
    assert await resolve("10.1.2.3", 443) == "10.1.2.3"
    for inside in ("10.96.0.1", "127.0.0.1", "169.254.169.254", "192.168.0.1"):
        with pytest.raises(FetchFailed):
            await resolve(inside, 443)


async def test_nothing_is_dialed_while_the_clusters_addresses_are_unknown() -> None:
    async def found(_host: str, _port: int) -> list[str]:
        return ["93.184.216.34"]

    with pytest.raises(FetchFailed, match="before the cluster's own addresses"):
        await resolver(settings(), lambda: None, found)(HOST, 443)
    assert await resolver(settings(), lambda: (), found)(HOST, 443) == "93.184.216.34"


@pytest.mark.parametrize("name", [".", "..", ".git", ".GIT", ".git ", "git~1", "a/b", "../up"])
async def test_entries_that_no_honest_repository_has_are_refused(
    server: GitServer, fetcher: Fetcher, name: str
) -> None:
    repository = server.repository("project.git")
    repository.commit(repository.tree(("100644", repository.blob(b"x"), name)))
    assert (await refused(fetcher, server.url("project.git"))).problem == "unsafe"


async def test_the_same_name_twice_is_refused(server: GitServer, fetcher: Fetcher) -> None:
    repository = server.repository("project.git")
    link, inner = repository.blob(b"elsewhere"), repository.tree()
    repository.commit(repository.tree(("120000", link, "a"), ("40000", inner, "a")))
    assert (await refused(fetcher, server.url("project.git"))).problem == "unsafe"


async def test_a_pack_that_is_too_large_is_given_up(server: GitServer, fetcher: Fetcher) -> None:
    repository = server.repository("project.git")
    blobs = [repository.blob(os.urandom(23 * 1024 * 1024)) for _ in range(3)]
    repository.commit(repository.tree(*(("100644", x, f"f{n}") for n, x in enumerate(blobs))))
    error = await refused(fetcher, server.url("project.git"))
    assert error.problem == "too-large"
    assert "64 MiB" in str(error)


async def test_files_that_unpack_to_too_much_are_given_up(
    server: GitServer, fetcher: Fetcher
) -> None:
    repository = server.repository("project.git")
    blob = repository.blob(bytes(30 * 1024 * 1024))
    repository.commit(repository.tree(*(("100644", blob, f"f{n}") for n in range(9))))
    assert (await refused(fetcher, server.url("project.git"))).problem == "too-large"
    one = repository.blob(bytes(400 * 1024 * 1024))
    repository.commit(repository.tree(("100644", one, "huge")))
    assert (await refused(fetcher, server.url("project.git"))).problem == "too-large"


async def test_trees_that_hold_each_other_many_times_are_given_up(
    server: GitServer, fetcher: Fetcher
) -> None:
    repository = server.repository("project.git")
    tree = repository.tree(("100644", repository.blob(b"x"), "f"))
    for _ in range(8):
        tree = repository.tree(*(("40000", tree, f"d{n}") for n in range(10)))
    repository.commit(tree)
    error = await refused(fetcher, server.url("project.git"))
    assert (error.problem, str(work.MAX_ENTRIES) in str(error)) == ("too-large", True)


async def test_a_repository_near_the_bounds_fits(server: GitServer, fetcher: Fetcher) -> None:
    repository = server.repository("project.git")
    blobs = [repository.blob(os.urandom(20 * 1024 * 1024)) for _ in range(3)]
    repository.commit(repository.tree(*(("100644", x, f"f{n}") for n, x in enumerate(blobs))))
    found, archive = await fetcher.fetch("team", server.url("project.git"), None, None)
    assert found.entries == 3
    assert members(archive)["f0"].size == 20 * 1024 * 1024


@pytest.mark.parametrize(
    ("path", "target", "kept"),
    [
        ("a", "b", True),
        ("d/a", "../b", True),
        ("d/a", "./x/y", True),
        ("a", "../b", False),
        ("d/a", "../../b", False),
        ("d/a", "x/../../../b", False),
        ("a", "/etc", False),
        ("a", "", False),
        ("a", ".git/config", False),
    ],
)
def test_links_that_stay_inside(path: str, target: str, kept: bool) -> None:
    assert trees.stays_inside(tuple(path.encode().split(b"/")), target.encode()) is kept


def test_the_cache_is_bounded_and_keeps_what_is_used(tmp_path: Path) -> None:
    (tmp_path / "left-behind").mkdir()
    cache = Cache(tmp_path, max_bytes=25)
    assert list(tmp_path.iterdir()) == []
    for key in "abc":
        made = cache.scratch() / "files.tar"
        made.write_bytes(bytes(10))
        cache.put(key, made)
        cache.get("a")
    assert (cache.get("a") is None, cache.get("b") is None) == (False, True)
    assert sorted(each.name for each in tmp_path.glob("*.tar")) == ["a.tar", "c.tar"]


async def test_the_operators_own_resolver_leads_nowhere_inside(tmp_path: Path) -> None:
    made = fetcher_of(settings(git_cache=str(tmp_path / "cache")), lambda: ())
    assert made is not None
    with pytest.raises(FetchFailed) as caught:
        await made.fetch("team", "https://localhost/project.git", None, None)
    assert caught.value.problem == "not-allowed"
    with pytest.raises(FetchFailed) as caught:
        await made.fetch("team", "https://nowhere.invalid/project.git", None, None)
    assert caught.value.problem == "unreachable"


def test_without_a_disk_nothing_is_fetched_and_the_operator_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert fetcher_of(settings(git_cache=str(tmp_path / "file" / "cache")), lambda: ()) is None


async def test_certificates_that_are_none_are_said(server: GitServer, tmp_path: Path) -> None:
    made = Fetcher(Cache(tmp_path / "cache"), loopback, "-----BEGIN CERTIFICATE-----\nMIIB\n")
    error = await refused(made, server.url("project.git"))
    assert (error.problem, "git.caBundle" in str(error)) == ("untrusted", True)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"[]",
        b"{}",
        b'{"commit": "../../etc", "entries": 1, "size": 1, "left_out": 0}',
        b'{"commit": "%s", "entries": "x", "size": 1, "left_out": 0}' % (b"1" * 40),
        b'{"problem": "made-up", "sentence": "x"}',
        pytest.param(b"[" * 4096, id="deep"),
    ],
)
def test_a_process_that_was_taken_over_is_not_believed(said: bytes) -> None:
    with pytest.raises(FetchFailed) as caught:
        read_answer(said)
    assert caught.value.problem == "unsupported"


def test_what_a_process_says_is_bounded() -> None:
    with pytest.raises(FetchFailed) as caught:
        read_answer(json.dumps({"problem": "failed", "sentence": "a\nb" * 1000}).encode())
    assert str(caught.value) == "failed"
