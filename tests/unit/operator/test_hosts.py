"""Which names of hosts are accepted, by the schema and by the operator, and how they are kept."""

import re

import pytest

from cloister_operator.api.environment import Networking
from cloister_operator.api.hosts import MAX_HOSTS, host, of_url
from cloister_operator.errors import PermanentError
from cloister_operator.plan.egress import Reach, reach, without_covered
from support.chart import crd_schema
from support.host_names import GOOD, REFUSED_BY_BOTH

REFUSED_BY_THE_OPERATOR = [
    "*.co.uk",
    "*.github.io",
    "*.s3.amazonaws.com",
    "xn--zzzzzz.example",
    "example\u2024com\u2024",
    "example\u3002com\u3002",
    "\u2488com",
    "\uff11\uff12\uff17.0.0.1",
    "ⓛocalhost.Localhost",
    "kubernetes.default.\uff33\uff36\uff23",
    "a.corp.example",
]


def by_schema(text: str) -> bool:
    """What the rules of the CRD say, which are regular expressions in CEL."""
    items = crd_schema("environments")["properties"]["spec"]["properties"]["networking"][
        "properties"
    ]["allowedHosts"]["items"]
    (rule,) = items["x-kubernetes-validations"]
    holds = items["minLength"] <= len(text) <= items["maxLength"]
    for negated, pattern in re.findall(r"(!?)self\.matches\('([^']*)'\)", rule["rule"]):
        # RE2 writes a character by its number in braces, and its $ is the end of the text.
        pattern = re.sub(r"\\\\x\{([0-9A-Fa-f]+)\}", lambda m: chr(int(m[1], 16)), pattern)
        pattern = pattern.replace("$", r"\Z")
        holds = holds and (re.search(pattern, text) is not None) != bool(negated)
    return bool(holds)


@pytest.mark.parametrize("text", GOOD)
def test_accepted_names_have_one_form(text: str) -> None:
    assert by_schema(text)
    assert host(text, "f") == GOOD[text]
    assert host(GOOD[text], "f") == GOOD[text]


@pytest.mark.parametrize("text", REFUSED_BY_BOTH)
def test_what_the_schema_refuses_the_operator_refuses(text: str) -> None:
    assert not by_schema(text)
    with pytest.raises(PermanentError) as caught:
        host(text, "spec.networking.allowedHosts[3]")
    assert caught.value.field == "spec.networking.allowedHosts[3]"
    assert caught.value.reason == "InvalidSpec"


@pytest.mark.parametrize("text", REFUSED_BY_THE_OPERATOR)
def test_what_only_the_operator_can_refuse(text: str) -> None:
    with pytest.raises(PermanentError):
        host(text, "f", cluster_domain="Corp.example.")


def test_a_long_name_is_not_repeated_whole() -> None:
    with pytest.raises(PermanentError) as caught:
        host("x" * 10_000, "f")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://mcp.example.com/mcp", "mcp.example.com"),
        ("https://mcp.example.com", "mcp.example.com"),
        ("https://mcp.example.com:443/", "mcp.example.com"),
        ("https://bücher.example/x", "xn--bcher-kva.example"),
    ],
)
def test_the_host_of_a_url(url: str, expected: str) -> None:
    assert of_url(url, "f") == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://mcp.example.com/",
        "ftp://mcp.example.com/",
        "mcp.example.com",
        "//mcp.example.com/",
        "https://",
        "https:///x",
        "https://user@mcp.example.com/",
        "https://user:pass@mcp.example.com/",
        "https://@mcp.example.com/",
        "https://mcp.example.com:8443/",
        "https://mcp.example.com:x/",
        "https://mcp.example.com/?a=b",
        "https://mcp.example.com/#a",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://[::1/",
        "https://*.example.com/",
        "https://localhost/",
        "https://ok.example.com\\@evil.example.com/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(PermanentError) as caught:
        of_url(url, "spec.networking.mcpServers[0]")
    assert caught.value.field == "spec.networking.mcpServers[0]"


def networking(**given: object) -> Networking:
    return Networking.model_validate(given)


def test_nothing_is_allowed_unless_it_is_asked_for() -> None:
    assert reach(networking()) == Reach("none", ())
    quiet = networking(mcpServers=["https://mcp.example.com/mcp"])
    assert reach(quiet, ["packages.example"]) == Reach("none", ())


def test_hosts_are_put_together_sorted_and_once() -> None:
    given = networking(
        allowedHosts=["b.example.com", "B.example.com", "a.example.com"],
        allowPackageManagers=True,
        mcpServers=["https://mcp.example.com/mcp", "https://a.example.com/other"],
        allowMcpServers=True,
    )
    expected = ("a.example.com", "b.example.com", "mcp.example.com", "packages.example")
    assert reach(given, ["packages.example"]) == Reach("gateway", expected)


def test_what_a_wildcard_covers_is_left_out() -> None:
    every = ["*.example.com", "a.example.com", "*.a.example.com", "example.com", "notexample.com"]
    assert without_covered(every) == ("*.example.com", "example.com", "notexample.com")


def test_unrestricted_names_no_hosts() -> None:
    assert reach(networking(type="unrestricted"), ["packages.example"]) == Reach("unrestricted")


def test_there_are_not_too_many() -> None:
    many = [f"h{index}.example.com" for index in range(MAX_HOSTS)]
    assert len(reach(networking(allowedHosts=many)).hosts) == MAX_HOSTS
    more = networking(allowedHosts=many, allowPackageManagers=True)
    with pytest.raises(PermanentError) as caught:
        reach(more, ["packages.example"])
    assert caught.value.field == "spec.networking.allowedHosts"


def test_a_refused_name_is_named_by_its_place() -> None:
    with pytest.raises(PermanentError) as caught:
        reach(networking(allowedHosts=["ok.example.com", "*.co.uk"]))
    assert caught.value.field == "spec.networking.allowedHosts[1]"
    with pytest.raises(PermanentError) as caught:
        reach(networking(mcpServers=["https://10.0.0.1/"]))
    assert caught.value.field == "spec.networking.mcpServers[0]"
