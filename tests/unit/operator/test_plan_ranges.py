"""The cluster's own addresses, and what is left of the internet without them."""

import ipaddress
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_operator.plan import ranges, spans

JSON = dict[str, Any]


def found(read: Any, obj: JSON) -> set[str]:
    return {str(each) for each in read(obj)}


def test_a_nodes_addresses_inside_and_outside_and_those_of_its_pods() -> None:
    node = {
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "2001:4:1::/64"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "192.0.2.7"},
                {"type": "ExternalIP", "address": "34.1.2.3"},
                {"type": "ExternalIP", "address": "2600::7"},
                {"type": "Hostname", "address": "node-1.example"},
            ]
        },
    }
    expected = {"10.244.1.0/24", "2001:4:1::/64", "192.0.2.7/32", "34.1.2.3/32", "2600::7/128"}
    assert found(ranges.of_node, node) == expected


def test_every_address_of_a_service() -> None:
    service = {
        "spec": {
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1", "fd00::1"],
            "externalIPs": ["34.9.9.9"],
            # What somebody wishes for is not what they get.
            "loadBalancerIP": "35.1.1.1",
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "36.1.1.1"}, {"hostname": "lb.example"}]}},
    }
    assert found(ranges.of_service, service) == {"10.96.0.1/32", "fd00::1/128", "36.1.1.1/32"}
    assert found(ranges.claimed_by_service, service) == {"34.9.9.9/32"}
    assert found(ranges.of_service, {"spec": {"clusterIP": "None"}}) == set()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("034.009.9.09", "34.9.9.9/32"),
        ("000.000.000.000", "0.0.0.0/32"),
        ("::ffff:34.9.9.9", "34.9.9.9/32"),
        ("::FFFF:2209:0909", "34.9.9.9/32"),
        ("::ffff:034.9.9.9", "34.9.9.9/32"),
        ("010.244.0.0/16", "10.244.0.0/16"),
        ("::ffff:10.244.0.0/112", "10.244.0.0/16"),
        ("::fffe:0:0/95", "::fffe:0:0/95"),
        ("2600:0:0::07", "2600::7/128"),
        ("2600:00001901:000000::0000a", "2600:1901::a/128"),
        ("2600::034.009.9.9", "2600::2209:909/128"),
    ],
)
def test_an_address_is_read_as_kubernetes_reads_it(written: str, meant: str) -> None:
    """Without StrictIPCIDRValidation the API server takes these of whoever may make a Service."""
    service = {"spec": {"externalIPs": [written]}}
    assert found(ranges.claimed_by_service, service) == {meant}


def test_nobody_claims_so_many_addresses_that_others_do_not_count() -> None:
    def claims(first: int, count: int) -> list[spans.Network]:
        return [ipaddress.ip_network(first + 2 * each) for each in range(count)]

    honest, larger, greedy = claims(1 << 28, 3), claims(1 << 29, 20), claims(1 << 30, 9_000)
    assert ranges.believed({"honest": honest}) == set(honest)
    kept = ranges.believed({"greedy": greedy, "honest": honest, "larger": larger})
    assert kept > {*honest, *larger}
    assert len(kept) == ranges.MAX_CLAIMED
    many = {f"greedy-{each}": claims(each << 20, 50) for each in range(1, 99)}
    crowded = ranges.believed({**many, "honest": honest})
    assert set(honest) < crowded
    assert len(crowded) <= ranges.MAX_CLAIMED
    assert ranges.believed({}) == set()


def test_the_other_kinds() -> None:
    assert found(ranges.of_service_cidr, {"spec": {"cidrs": ["10.96.0.0/12"]}}) == {"10.96.0.0/12"}
    slices = {"endpoints": [{"addresses": ["34.5.5.5"]}, {"addresses": ["34.5.5.6"]}]}
    assert found(ranges.of_endpoint_slice, slices) == {"34.5.5.5/32", "34.5.5.6/32"}
    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "34.6.6.6"}]}}}
    assert found(ranges.of_ingress, ingress) == {"34.6.6.6/32"}


@pytest.mark.parametrize(
    "read",
    [
        ranges.of_node,
        ranges.of_service,
        ranges.of_service_cidr,
        ranges.of_endpoint_slice,
        ranges.of_ingress,
    ],
)
@pytest.mark.parametrize("obj", [{}, {"spec": None, "status": None, "endpoints": None}])
def test_objects_that_say_nothing_say_nothing(read: Any, obj: JSON) -> None:
    assert read(obj) == frozenset()


def test_ranges_come_in_the_fewest_words_and_always_in_the_same_order() -> None:
    given_ones = ["34.0.0.1", "10.0.1.0/24", "10.0.0.0/24", "10.0.0.7", "2600::1", "fd00::/8"]
    expected = ("10.0.0.0/23", "34.0.0.1/32", "2600::1/128", "fd00::/8")
    assert ranges.joined(ranges.networks(given_ones)) == ranges.Joined(expected)
    assert ranges.joined(ranges.networks(reversed(given_ones))) == ranges.Joined(expected)


def test_more_public_ranges_than_a_gateway_takes_become_larger_ones() -> None:
    # Of 5,000 nodes: apart from each other, in both families, and with private addresses beside.
    chance = random.Random(7)
    public = [f"{chance.randrange(20, 70)}.{each % 250}.3.7" for each in range(5000)]
    wide = [f"2600:{chance.randrange(1 << 16):x}:0:1::9" for each in range(5000)]
    private = [f"10.{each // 200}.{each % 200}.9" for each in range(5000)]
    every = list(ranges.networks([*public, *wide, *private, "77.0.0.0/9"]))
    joined = ranges.joined(every)
    made = joined.ranges
    assert joined.wider
    outside = ranges.on_the_internet(made)
    assert ranges.MAX_PUBLIC // 4 < len(outside) <= ranges.MAX_PUBLIC
    networks = [ipaddress.ip_network(each) for each in outside]
    for address in map(ipaddress.ip_address, [*public, *wide][::97]):
        assert any(address in each for each in networks)
    # What is special is as it was: it counts for nobody, and nothing of it got larger.
    assert set(made) - set(outside) == set(ranges.joined(ranges.networks(private)).ranges)
    assert "77.0.0.0/9" in made
    assert not is_open(public[0], list(made))
    assert is_open("1.1.1.1", list(made))
    few = every[:4000]
    assert ranges.joined(few) == ranges.joined(few, len(few))
    assert not ranges.joined(few).wider


@given(
    st.lists(st.one_of(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address),
                       st.integers(2**125, 2**126 - 1).map(ipaddress.IPv6Address)), max_size=40),
    st.integers(40, 60),
)  # fmt: skip
def test_whatever_becomes_larger_holds_what_there_was(own: list[Any], most: int) -> None:
    every = [ipaddress.ip_network(each) for each in own]
    others = [ipaddress.ip_network(f"34.{each}.0.1") for each in range(50)]
    made = ranges.joined([*every, *others], most).ranges
    assert len(ranges.on_the_internet(made)) <= most
    assert all(any(each in ipaddress.ip_network(one) for one in made) for each in own)


NETWORKS = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda each: ipaddress.IPv4Network(each, strict=False)
    ),
    # Close to each other, so that they meet and hold each other.
    st.tuples(st.integers(0, 2**12), st.integers(116, 128)).map(
        lambda each: ipaddress.IPv6Network(each, strict=False)
    ),
    st.tuples(st.integers(2**32 - 2**8, 2**32 - 1), st.integers(24, 32)).map(
        lambda each: ipaddress.IPv4Network(each, strict=False)
    ),
)


@given(st.lists(NETWORKS, max_size=60), NETWORKS)
def test_ranges_are_joined_as_pythons_own_library_joins_them(own: list[Any], other: Any) -> None:
    v4 = ipaddress.collapse_addresses(each for each in own if each.version == 4)
    v6 = ipaddress.collapse_addresses(each for each in own if each.version == 6)
    joined = [*v4, *v6]
    assert spans.collapse(own) == joined
    same = [each for each in joined if each.version == other.version]
    assert spans.Union(own).holds(other) == any(other.subnet_of(each) for each in same)


def blocks(own: list[str]) -> dict[str, list[str]]:
    return {each["ipBlock"]["cidr"]: each["ipBlock"]["except"] for each in ranges.internet(own)}


def test_without_ranges_of_the_clusters_own_the_special_ones_are_left_out() -> None:
    assert blocks([]) == {
        "0.0.0.0/0": list(ranges.SPECIAL_V4),
        "2000::/3": list(ranges.SPECIAL_V6),
    }


def test_what_is_covered_is_said_once() -> None:
    made = blocks(["10.1.0.0/16", "192.0.0.0/8", "34.0.0.0/8", "fd00::/8", "2001:d00::/24"])
    assert made["0.0.0.0/0"][-2:] == ["192.0.0.0/8", "34.0.0.0/8"]
    assert not {"10.1.0.0/16", "192.168.0.0/16", "192.0.2.0/24"} & set(made["0.0.0.0/0"])
    assert made["2000::/3"][-1] == "2001:d00::/24"
    assert "2001:db8::/32" not in made["2000::/3"]


def test_a_family_that_is_the_clusters_own_as_a_whole_is_closed() -> None:
    assert set(blocks(["0.0.0.0/0"])) == {"2000::/3"}
    assert set(blocks(["::/0"])) == {"0.0.0.0/0"}
    assert set(blocks(["2000::/3"])) == {"0.0.0.0/0"}


METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.169.252",
    "169.254.0.23",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fe80::a9fe:a9fe",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "::1",
    "127.0.0.1",
    "0.0.0.0",
    "255.255.255.255",
    "224.0.0.1",
    "ff02::1",
    "2001:1::1",
]


def is_open(address: str, own: list[str]) -> bool:
    """What a policy engine decides of an address."""
    asked = ipaddress.ip_address(address)
    for each in ranges.internet(own):
        block = each["ipBlock"]
        excepted = [ipaddress.ip_network(one) for one in block["except"]]
        if asked in ipaddress.ip_network(block["cidr"]):
            return not any(asked in one for one in excepted)
    return False


@pytest.mark.parametrize("address", METADATA)
def test_metadata_and_special_addresses_are_closed(address: str) -> None:
    assert not is_open(address, [])


@pytest.mark.parametrize("address", ["1.1.1.1", "34.1.2.4", "2606:4700::1111", "168.63.129.17"])
def test_the_internet_is_open(address: str) -> None:
    assert is_open(address, ["34.1.2.3/32", "10.0.0.0/8"])


v4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: str(ipaddress.ip_network(pair, strict=False))
)
v6 = st.tuples(st.integers(2**125, 2**126 - 1), st.integers(1, 128)).map(
    lambda pair: str(ipaddress.ip_network(pair, strict=False))
)


@given(st.lists(st.one_of(v4, v6), max_size=12))
def test_no_range_of_the_clusters_own_is_open_and_every_policy_is_valid(own: list[str]) -> None:
    own = list(ranges.joined(ranges.networks(own)).ranges)
    for each in own:
        network = ipaddress.ip_network(each)
        for address in (network[0], network[-1], network[network.num_addresses // 2]):
            assert not is_open(str(address), own)
    for peer in ranges.internet(own):
        base = ipaddress.ip_network(peer["ipBlock"]["cidr"])
        for each in peer["ipBlock"]["except"]:
            excepted = ipaddress.ip_network(each)
            # What the API server wants of it: a part of the range, and not the whole.
            assert excepted.version == base.version
            assert excepted.subnet_of(base)  # type: ignore[arg-type]
            assert excepted != base
