"""Tools that know of no proxy: what leads them from a sandbox to the gateways."""

import asyncio
from typing import Any

import pytest

from cloister_operator.api.environment import EnvironmentObject
from cloister_operator.api.pod import view
from cloister_operator.controller.context import address
from cloister_operator.controller.warmer import STARTUP_LIMIT
from cloister_operator.errors import PermanentError
from cloister_operator.manifests import network_policies
from cloister_operator.manifests.pods import SandboxPod, sandbox_pod
from cloister_operator.plan.egress import Aliases, Reach, by_name, gateway_ways
from cloister_operator.recipe import Around, Recipe, build
from support.operator_objects import environment, settings
from unit.operator.test_networking import HOSTS, with_gateway

JSON = dict[str, Any]
GATEWAY = "10.96.0.7:3128"
SOME = {"allowedHosts": ["api.example.com", "*.example.org"]}


def recipe(networking: JSON, gateway: str = GATEWAY, **given: Any) -> Recipe:
    platform = settings(**{"egress_by_name": True, **given})
    return build(environment(networking=networking), {}, platform, Around(gateway))


def spec_of_pod(networking: JSON, **given: Any) -> JSON:
    made: EnvironmentObject = environment(networking=networking)
    pod = SandboxPod("p", made, recipe(networking, **given))
    found: JSON = sandbox_pod(pod, settings())["spec"]
    return found


@pytest.mark.parametrize(
    ("reach", "gateway", "expected"),
    [
        (Reach("gateway", ("*.b.test", "a.test")), GATEWAY, Aliases("10.96.0.7", ("a.test",))),
        (Reach("gateway", ("a.test",)), "[fd00::7]:3128", Aliases("fd00::7", ("a.test",))),
        (Reach("gateway", ("*.b.test",)), GATEWAY, None),
        (Reach("gateway", ("a.test",)), "", None),
        (Reach("none"), GATEWAY, None),
        (Reach("unrestricted"), GATEWAY, None),
    ],
)
def test_names_that_are_listed_whole_lead_to_the_gateways(
    reach: Reach, gateway: str, expected: Aliases | None
) -> None:
    assert by_name(reach, gateway) == expected


def test_a_pod_knows_the_gateways_by_the_names_of_its_hosts_and_no_resolver() -> None:
    spec = spec_of_pod(SOME)
    assert spec["hostAliases"] == [{"ip": "10.96.0.7", "hostnames": ["api.example.com"]}]
    assert spec["dnsConfig"] == {"nameservers": ["127.0.0.1"]}


@pytest.mark.parametrize(
    "networking", [{}, {"type": "unrestricted"}, {"allowedHosts": ["*.example.org"]}]
)
def test_others_know_no_names(networking: JSON) -> None:
    assert "hostAliases" not in spec_of_pod(networking)


def test_where_the_platform_turned_it_off_nothing_is_different() -> None:
    assert "hostAliases" not in spec_of_pod(SOME, egress_by_name=False)
    on, off = recipe(SOME), recipe(SOME, egress_by_name=False)
    assert on.hash != off.hash
    # Who has no such host keeps its pods.
    assert recipe({}).hash == recipe({}, egress_by_name=False).hash


def test_an_address_of_ipv6_is_known_by_its_names_too() -> None:
    found = recipe(SOME, "[fd00::7]:3128").aliases
    assert found == Aliases("fd00::7", ("api.example.com",))


@pytest.mark.parametrize(("on", "ports"), [(True, [3128, 443]), (False, [3128])])
def test_policies_open_its_port_to_gateways_alone(on: bool, ports: list[int]) -> None:
    made = network_policies("sandboxes", settings(egress_by_name=on), ())
    (policy,) = (each for each in made if each["metadata"]["name"] == "cloister-egress-gateway")
    (rule,) = policy["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": port} for port in ports]
    (peer,) = rule["to"]
    assert set(peer) == {"namespaceSelector", "podSelector"}


@pytest.mark.parametrize(
    ("gateway", "on", "ways"),
    [
        (GATEWAY, True, [GATEWAY, "10.96.0.7:443"]),
        ("[fd00::7]:3128", True, ["[fd00::7]:3128", "[fd00::7]:443"]),
        (GATEWAY, False, [GATEWAY]),
        ("", True, []),
    ],
)
def test_the_ways_to_the_gateways(gateway: str, on: bool, ways: list[str]) -> None:
    assert gateway_ways(gateway, by_name=on) == ways


async def test_a_pod_waits_until_both_ways_are_open(make_world: Any) -> None:
    world = make_world(egress_gateway=True, egress_by_name=True)
    with_gateway(world)
    world.apply_environment(networking=HOSTS)
    operator = world.start()
    await operator.until(lambda: any(view(each).ip for each in world.pods(network="gateway")))
    (pod,) = (view(each) for each in world.pods(network="gateway"))
    warmer = operator.controller._warmer
    world.sandboxes.by_name_closed = True
    waits = asyncio.create_task(warmer._until_through(pod, address(pod)))
    probes = world.sandboxes.probes[pod.uid]
    await operator.until(lambda: world.sandboxes.probes[pod.uid] > probes + 1)
    assert not waits.done()
    world.sandboxes.by_name_closed = False
    await waits

    world.sandboxes.by_name_closed = True
    world.clock.now += STARTUP_LIMIT * 2
    with pytest.raises(PermanentError, match=r"does not reach the egress gateways at [0-9.]+:443$"):
        await warmer._until_through(pod, address(pod))
