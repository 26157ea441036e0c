"""What images say of their package managers is believed as far as it can be, and no further."""

import pytest

from cloister_operator.api.environment import PackageManagers, PackageSource
from cloister_operator.plan.packages import MAX_URLS, Packages, must_ask, packages, read
from support.operator_objects import settings

SAID = read(
    "image:1",
    [
        ("pip", ["https://index.example/simple", "https://files.example/"]),
        ("npm", ["https://npm.example/"]),
        ("go", ["https://proxy.example", "https://second.example/mod"]),
        ("go-checksums", ["https://sums.example/"]),
        ("apt", ["http://debian.example/debian/", "http://debian.example/debian-security/"]),
    ],
)
HOSTS = (
    "debian.example",
    "files.example",
    "index.example",
    "npm.example",
    "proxy.example",
    "second.example",
    "sums.example",
)


def test_hosts_and_settings_of_what_an_image_says() -> None:
    found = packages(settings(), SAID)
    assert found.hosts == HOSTS
    # Without it the tool goes on to wherever a module's own server is.
    assert found.variables == {"GOPROXY": "https://proxy.example,https://second.example/mod"}


def test_the_status_keeps_it_as_it_is() -> None:
    again = PackageManagers.model_validate(SAID.model_dump(mode="json", by_alias=True))
    assert packages(settings(), again) == packages(settings(), SAID)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example/",
        "file:///etc/passwd",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://localhost/",
        "https://kubernetes.default.svc/",
        "https://metadata.google.internal/",
        "https://*.example.com/",
        "https://user:secret@a.example/",
        "https://a.example:8443/",
        "http://a.example:443/",
        "https://a.example:99999/",
        "https://a.example/?token=secret",
        "https://a.example/#x",
        "https://a.example/ https://b.example/",
        "https://a.example/,direct",
        "https://a.example/|off",
        "https://a.example/\nX: y",
        "https://com/",
        "a.example",
        "",
        "https://" + "a" * 300 + ".example/",
        "https://a.example/" + "x" * 600,
    ],
)
def test_what_is_no_public_registry_is_left_out(url: str) -> None:
    found = read("image:1", [("pip", [url, "https://good.example/"])])
    assert found.sources == [PackageSource(manager="pip", urls=["https://good.example/"])]


def test_answers_are_bounded_and_in_order() -> None:
    many = [f"https://h{index}.example/" for index in range(1000)]
    found = read("image:1", [("pip", many), ("pip", many[::-1]), ("conda", many), ("x" * 99, many)])
    (source,) = found.sources
    assert (source.manager, len(source.urls)) == ("pip", MAX_URLS)
    assert source.urls == sorted(source.urls)
    swapped = read("i", [("npm", ["https://b.example/", "https://a.example/"]), ("apt", [])])
    assert swapped == read("i", [("npm", ["https://a.example/", "https://b.example/"])])


def test_an_image_that_says_nothing_allows_nothing() -> None:
    assert packages(settings(), None) == Packages()
    assert packages(settings(), read("image:1", [])) == Packages()


def test_hosts_of_the_platform_take_the_place_of_all_answers() -> None:
    given = settings(egress_package_hosts=("mirror.example",))
    assert not must_ask(given)
    assert packages(given, SAID) == Packages(("mirror.example",))


def test_a_mirror_takes_the_place_of_its_managers_answer() -> None:
    mirrors = {"pip": "https://mirror.example/pip", "go": "https://mirror.example/go"}
    given = settings(egress_mirrors=mirrors)
    assert must_ask(given)
    found = packages(given, SAID)
    assert found.hosts == ("debian.example", "mirror.example", "npm.example", "sums.example")
    assert found.variables == {"PIP_INDEX_URL": mirrors["pip"], "GOPROXY": mirrors["go"]}
