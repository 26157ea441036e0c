"""What the operator tells egress gateways, and what these take."""

from cloister_gateway import agent, requests
from cloister_gateway.ranges import Ranges
from cloister_operator.plan import grants, ranges


def test_a_gateway_takes_as_many_ranges_as_it_is_told_of() -> None:
    assert ranges.MAX_PUBLIC <= requests.MAX_RANGES


def test_what_it_is_not_told_of_it_denies_by_itself() -> None:
    denied = Ranges()
    private = ["fd00::/8", "::1/128", "64:ff9b::/96"]
    special = [*ranges.SPECIAL_V4, *ranges.SPECIAL_V6, *private]
    assert ranges.on_the_internet(special) == ()
    assert all(map(denied.covers, special))


def test_a_gateway_takes_as_much_as_it_is_told_of() -> None:
    assert grants.MAX_POLICIES <= requests.MAX_POLICIES
    assert grants.MAX_HOSTS <= requests.MAX_HOSTS
    sources = 100 * requests.MAX_SOURCES
    # Each host and policy has a few bytes around it.
    assert 4 * grants.MAX_BYTES + sources < agent.MAX_MESSAGE
