"""Both sides know the same addresses that are nobody's to reach; neither may import the other."""

import ipaddress

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
