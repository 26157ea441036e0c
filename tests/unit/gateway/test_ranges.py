"""Both sides know the same addresses that are nobody's to reach; neither may import the other."""

import ipaddress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cloister_gateway import ranges as gateways
from cloister_operator.plan import ranges as operators


def collapsed(texts: tuple[str, ...]) -> set[str]:
    v4 = (ipaddress.IPv4Network(each) for each in texts if ":" not in each)
    v6 = (ipaddress.IPv6Network(each) for each in texts if ":" in each)
    return {
        *map(str, ipaddress.collapse_addresses(v4)),
        *map(str, ipaddress.collapse_addresses(v6)),
    }


def test_the_gateways_deny_what_policies_do_not_open() -> None:
    assert collapsed(gateways.DENIED_IPV4) == collapsed(operators.SPECIAL_V4)
    assert collapsed(gateways.DENIED_IPV6) == collapsed(operators.SPECIAL_V6)
    assert ipaddress.ip_network(gateways.REACHABLE_IPV6) == operators.INTERNET_V6


NETWORKS = st.one_of(
    st.tuples(st.integers(2**24, 2**24 + 2**10), st.integers(22, 32)).map(
        lambda each: ipaddress.IPv4Network(each, strict=False)
    ),
    st.tuples(st.integers(2**125, 2**125 + 2**10), st.integers(118, 128)).map(
        lambda each: ipaddress.IPv6Network(each, strict=False)
    ),
)


@given(st.lists(NETWORKS, max_size=30), NETWORKS)
def test_what_is_denied_is_what_the_ranges_hold_together(own: list[Any], other: Any) -> None:
    denied = gateways.Ranges(map(str, own))
    same = [each for each in own if each.version == other.version]
    joined = list(ipaddress.collapse_addresses(same))
    assert denied.covers(str(other)) == any(other.subnet_of(each) for each in joined)
    for address in (other[0], other[-1]):
        assert denied.public(address) == (not any(address in each for each in same))
