"""From where the operator fetches repositories, and with which credentials."""

import base64
from typing import Any

import pytest

from cloister_operator.api.common import GitSource
from cloister_operator.errors import PermanentError
from cloister_operator.plan import git
from support.operator_objects import settings

URL = "https://git.example.com/team/project.git"


def check(
    url: str, *, ref: str | None = None, hosts: tuple[str, ...] = ("git.example.com",)
) -> None:
    git.check(GitSource(url=url, ref=ref), 3, settings(git_allowed_hosts=hosts))


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        (URL, ("git.example.com",)),
        ("https://GIT.example.com/a", ("git.EXAMPLE.com",)),
        (URL, ("*.example.com",)),
        ("https://git.example.com:8443/a", ("git.example.com:8443",)),
        ("https://git.example.com:443/a", ("git.example.com",)),
        ("https://git.example.com/My%20Project/_git/%C3%BCber", ("git.example.com",)),
    ],
)
def test_allowed_hosts_are_fetched_from(url: str, hosts: tuple[str, ...]) -> None:
    check(url, hosts=hosts)


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        (URL, ()),
        (URL, ("example.com",)),
        (URL, ("git.example.com:8443",)),
        ("https://git.example.com:8443/a", ("git.example.com",)),
        ("https://git.example.com.evil.org/a", ("git.example.com",)),
        ("https://evilgit.example.com/a", ("git.example.com",)),
    ],
)
def test_only_allowed_hosts_are_fetched_from(url: str, hosts: tuple[str, ...]) -> None:
    with pytest.raises(PermanentError, match="the platform allows these hosts") as caught:
        check(url, hosts=hosts)
    assert caught.value.reason == "GitFetchFailed"
    assert caught.value.field == "spec.files[3].git.url"


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://git.example.com/a",
            "ssh://git.example.com/a",
            "file:///etc",
            "git.example.com/a",
        ),
        *(
            "https://me:pw@git.example.com/a",
            "https://git.example.com/a?b",
            "https://git.example.com",
        ),
        *("https://git.example.com/a#b", "https://git.example.com/../a", "https://127.0.0.1/a"),
        *("https://[::1]/a", "https://git.example.com:99999/a", "https://git.example.com\n/a", ""),
        # A server decodes these: credentials for /team/ would fetch what lies beside it.
        *(
            f"https://git.example.com/team/{each}other/project.git"
            for each in ("%2e%2e/", ".%2E/", "..%2f", "%2E./", "..%5c", "..%3b/", "%252e%252e/")
        ),
        "https://git.example.com/a%00",
    ],
)
def test_urls_that_are_none_of_a_repository(url: str) -> None:
    with pytest.raises(PermanentError) as caught:
        check(url, hosts=("*",))
    assert (caught.value.reason, caught.value.field) == ("InvalidSpec", "spec.files[3].git.url")


@pytest.mark.parametrize("ref", ["-x", "a..b", "a b", "", "a\n", "refs/../x"])
def test_refs_that_are_none(ref: str) -> None:
    with pytest.raises(PermanentError) as caught:
        check(URL, ref=ref)
    assert caught.value.field == "spec.files[3].git.ref"


def secret(data: dict[str, str], urls: str | None = None, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {
            "labels": {"cloister.dev/git": "true"}
            | {f"cloister.dev/{k}": v for k, v in labels.items()},
            "annotations": {} if urls is None else {"cloister.dev/git-urls": urls},
        },
        "data": {key: base64.b64encode(text.encode()).decode() for key, text in data.items()},
    }


def test_credentials_are_read() -> None:
    found = git.login("s", secret({"username": "me", "password": "pw\n"}), URL, "f")
    assert (found.username, found.password) == ("me", "pw")
    assert git.login("s", secret({"token": "t"}), URL, "f").password == "t"
    assert "pw" not in repr(found)


@pytest.mark.parametrize(
    ("urls", "allowed"),
    [
        ("https://git.example.com", True),
        ("https://git.example.com/team", True),
        ("https://other.example.com/, https://git.example.com/team/", True),
        (URL, True),
        ("https://git.example.com/te", False),
        ("https://git.example.co", False),
        ("https://other.example.com", False),
        ("git.example.com", False),
        ("", False),
    ],
)
def test_credentials_need_the_platforms_label_and_their_urls(urls: str, allowed: bool) -> None:
    if allowed:
        git.login("s", secret({"token": "t"}, urls), URL, "f")
    else:
        with pytest.raises(PermanentError) as caught:
            git.login("s", secret({"token": "t"}, urls), URL, "f")
        assert caught.value.reason == "ReferenceRefused"
    for given in (
        secret({"token": "t"}, urls, **{"allow-in-sandbox": "true"}),
        secret({"token": "t"}, urls, git="yes"),
        {"data": {"token": "dA=="}},
    ):
        with pytest.raises(PermanentError) as caught:
            git.login("s", given, URL, "f")
        assert caught.value.reason == "ReferenceRefused"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "ReferenceNotFound"),
        (secret({}), "ReferenceNotFound"),
        (secret({"username": "me"}), "ReferenceNotFound"),
        (secret({"token": "s3cret\nX-Header: y"}), "InvalidSpec"),
        (secret({"username": "a:b", "password": "s3cret"}), "InvalidSpec"),
        (secret({"token": "s3cret" * 1000}), "InvalidSpec"),
    ],
)
def test_a_secret_that_is_no_login_is_refused_without_quoting_it(found: Any, reason: str) -> None:
    with pytest.raises(PermanentError) as caught:
        git.login("login", found, URL, "spec.files[0].git.secretRef")
    assert (caught.value.reason, caught.value.field) == (reason, "spec.files[0].git.secretRef")
    assert "s3cret" not in str(caught.value)
