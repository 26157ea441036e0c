"""What egress gateways decide is told to the operator, once."""

import pytest

from cloister_api.egress.v1 import egress_pb2
from cloister_operator.api.pod import PodView
from support.eventually import until
from support.fake_gateway import FakeGateway
from support.gateway_site import Pusher, Site


def decision(pod: PodView, host: str = "a.example", *, allowed: bool = True) -> egress_pb2.Decision:
    return egress_pb2.Decision(
        pod_uid=pod.uid, host=host, port=443, allowed=allowed, reason="Allowed", count=2
    )


async def following(site: Site) -> tuple[FakeGateway, PodView, Pusher]:
    """A gateway, a pod behind it, and an operator that was told of one decision."""
    gateway = await site.gateway("g1")
    pod = site.pod("p1", "10.244.0.5")
    gateway.decide(decision(pod, "old.example"))
    operator = site.operator().start()
    await until(lambda: operator.told.messages)
    return gateway, pod, operator


@pytest.mark.usefixtures("brisk")
async def test_what_is_decided_is_told_once(site: Site) -> None:
    gateway, pod, operator = await following(site)
    gateway.decide(decision(pod), decision(pod, "evil\n.example\x1b[2J", allowed=False), lost=3)
    await until(lambda: len(operator.told.messages) == 2)
    (_, first, was_before), (name, second, is_before) = operator.told.messages
    assert [each.host for each in first.decisions] == ["old.example"]
    assert (was_before, is_before) == (True, False)
    assert (name, second.lost) == ("g1", 3)
    assert [(each.host, each.allowed) for each in second.decisions] == [
        ("a.example", True),
        ("evil .example [2J", False),
    ]
    # Its agent starts anew, and what it tells then is new.
    gateway.restart()
    gateway.decide(decision(pod, "new.example"))
    await until(lambda: len(operator.told.messages) == 3)
    _, third, is_before = operator.told.messages[-1]
    assert [each.host for each in third.decisions] == ["new.example"]
    assert not is_before


@pytest.mark.usefixtures("brisk")
async def test_a_channel_that_is_closed_ends_no_following(site: Site) -> None:
    """The other call that found the gateway away closes it, as a new certificate does."""
    gateway, pod, operator = await following(site)
    operator.client.forget("uid-of-g1")
    gateway.decide(decision(pod))
    await until(lambda: len(operator.told.messages) == 2)
    _, found, was_before = operator.told.messages[-1]
    assert [each.host for each in found.decisions] == ["a.example"]
    assert not was_before
