"""The calls to egress gateways: for a gateway of one's own, and from the operator alone."""

from datetime import UTC, datetime

import pytest

from cloister_operator.api.gateway import gateway_view
from cloister_operator.errors import PermanentError, TransientError
from cloister_operator.identity import Authority
from cloister_operator.plan.grants import Source, State
from cloister_operator.sandboxes.gateways import EgressGateways, StaleError
from support.certificates import Pair
from support.fake_gateway import FakeGateway
from support.gateway_site import gateway_body
from support.sandbox_server import free_port


async def test_the_calls_are_for_the_gateway_and_from_the_operator_alone(
    world_authority: Authority,
) -> None:
    now, port, real = datetime.now(UTC), free_port(), FakeGateway()
    identity = world_authority.egress_gateway_server(now)
    pair = Pair(identity.certificate_pem, identity.private_key_pem)
    await real.start(pair, world_authority.ca_pem, "127.0.0.1", port)
    there = gateway_view(gateway_body("g1", "127.0.0.1"))
    stranger = EgressGateways(Authority.create(now), port=port)
    client = EgressGateways(world_authority, port=port)
    try:
        with pytest.raises(TransientError):
            await stranger.info(there)
        state = State({"p": ("a.example",)}, {"10.0.0.1": Source("p", "u1")}, ("10.0.0.0/8",))
        assert (await client.apply(there, state, 3, 9)).revision == 9
        assert real.reaches("10.0.0.1") == ("u1", frozenset({"a.example"}))
        found = await client.info(there)
        assert (found.term, found.revision, found.boot_id) == (3, 9, real.boot_id)
        with pytest.raises(StaleError):
            await client.apply(there, state, 3, 8)
        wrong = State({"p": ("*",)}, {}, ())
        with pytest.raises(PermanentError, match=r"policies\[0\].hosts\[0\]"):
            await client.apply(there, wrong, 3, 10)
        assert real.held.version == (3, 9)
    finally:
        await stranger.aclose()
        await client.aclose()
        await real.stop()


async def test_an_impostor_gets_nothing(world_authority: Authority) -> None:
    """A pod of one's own, at the address of a gateway that is gone."""
    port, impostor = free_port(), FakeGateway()
    identity = world_authority.pod_server("some-pod", datetime.now(UTC))
    pair = Pair(identity.certificate_pem, identity.private_key_pem)
    await impostor.start(pair, world_authority.ca_pem, "127.0.0.1", port)
    client = EgressGateways(world_authority, port=port)
    try:
        with pytest.raises(TransientError):
            await client.apply(gateway_view(gateway_body("g1", "127.0.0.1")), State(), 1, 1)
        assert not impostor.pushes
    finally:
        await client.aclose()
        await impostor.stop()
