"""The egress gateways' certificate, and their way to the internet."""

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from cloister_operator import names
from cloister_operator.cluster.resources import NAMESPACES, NETWORK_POLICIES, SECRETS
from cloister_operator.controller.context import Context
from cloister_operator.controller.gateway_objects import GatewayObjects
from cloister_operator.identity import OPERATOR_LIFETIME, Authority
from cloister_operator.manifests.gateways import gateway_internet
from support.fake_api import Connection
from support.fake_operator import World
from support.operator_objects import JSON, NOW, settings

SYSTEM = "cloister-system"


class Keeper:
    """GatewayObjects on a cluster in memory."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.cluster.create(NAMESPACES, "", {"metadata": {"name": SYSTEM}})
        self.context = Context(
            Connection(world.cluster), world.sandboxes, world.authority, world.settings, world.clock
        )
        self.objects = GatewayObjects(self.context)

    def secret(self) -> JSON:
        found: JSON = self.world.cluster.get(SECRETS, SYSTEM, names.EGRESS_GATEWAY)
        return found

    def certificate(self) -> x509.Certificate:
        pem = base64.b64decode(self.secret()["data"]["tls.crt"])
        return x509.load_pem_x509_certificate(pem)


@pytest.fixture
def keeper(make_world: Callable[..., World]) -> Keeper:
    return Keeper(make_world())


async def test_the_certificate_is_made_once(keeper: Keeper) -> None:
    await keeper.objects.look()
    first = keeper.secret()
    names_ = keeper.certificate().extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names_.value.get_values_for_type(x509.DNSName) == [names.EGRESS_GATEWAY]
    assert base64.b64decode(first["data"]["ca.crt"]) == keeper.world.authority.ca_pem
    await keeper.objects.look()
    assert keeper.secret() == first


async def test_it_is_renewed_in_time(keeper: Keeper) -> None:
    await keeper.objects.look()
    first = keeper.certificate()
    keeper.world.clock.now += OPERATOR_LIFETIME * 2 / 3 - timedelta(hours=1)
    await keeper.objects.look()
    assert keeper.certificate() == first
    keeper.world.clock.now += timedelta(hours=2)
    await keeper.objects.look()
    assert keeper.certificate().not_valid_after_utc > first.not_valid_after_utc


async def test_it_follows_the_ca(keeper: Keeper) -> None:
    await keeper.objects.look()
    first = keeper.certificate()
    keeper.context.authority = Authority.create(NOW)
    await keeper.objects.look()
    assert keeper.certificate().serial_number != first.serial_number
    ca = base64.b64decode(keeper.secret()["data"]["ca.crt"])
    assert ca == keeper.context.authority.ca_pem


@pytest.mark.parametrize("data", [{}, {"tls.crt": "bm90aGluZw=="}, {"tls.crt": "%"}])
async def test_what_cannot_be_read_is_replaced(keeper: Keeper, data: dict[str, str]) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": names.EGRESS_GATEWAY, "namespace": SYSTEM},
        "data": data,
    }
    keeper.world.cluster.create(SECRETS, SYSTEM, body)
    await keeper.objects.look()
    assert keeper.certificate().not_valid_after_utc > datetime(2026, 5, 2, tzinfo=UTC)


async def test_the_way_out_waits_until_the_clusters_addresses_are_known(keeper: Keeper) -> None:
    await keeper.objects.look()
    assert not keeper.world.cluster.peek_all(NETWORK_POLICIES, SYSTEM)
    keeper.context.ranges.current = ("203.0.114.0/24",)
    await keeper.objects.look()
    (policy,) = keeper.world.cluster.peek_all(NETWORK_POLICIES, SYSTEM)
    assert policy["metadata"]["name"] == names.EGRESS_GATEWAY_INTERNET


def test_the_way_out_is_the_internet_alone() -> None:
    spec = gateway_internet(settings(), ("203.0.114.0/24", "2a00:1::/32"))["spec"]
    assert spec["policyTypes"] == ["Egress"]
    assert spec["podSelector"]["matchLabels"][names.COMPONENT_LABEL] == names.EGRESS_COMPONENT
    (rule,) = spec["egress"]
    assert [(each["protocol"], each["port"]) for each in rule["ports"]] == [
        ("TCP", 80),
        ("TCP", 443),
    ]
    four, six = (each["ipBlock"] for each in rule["to"])
    assert four["cidr"] == "0.0.0.0/0"
    assert {"10.0.0.0/8", "169.254.0.0/16", "168.63.129.16/32", "203.0.114.0/24"} <= set(
        four["except"]
    )
    assert (six["cidr"], "2a00:1::/32" in six["except"]) == ("2000::/3", True)


def test_where_everything_is_the_clusters_own_there_is_no_way_out() -> None:
    assert gateway_internet(settings(), ("0.0.0.0/0", "2000::/3"))["spec"]["egress"] == []
