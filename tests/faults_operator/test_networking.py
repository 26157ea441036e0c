"""What Environments allow and the policies made of it, as a real API server takes them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from cloister_operator import manifests
from cloister_operator.plan import ranges
from faults_operator.control_plane import ControlPlane, control_plane
from support.host_names import GOOD, REFUSED_BY_BOTH
from support.operator_objects import environment_body, settings

JSON = dict[str, Any]
ENVIRONMENTS = "/apis/cloister.dev/v1alpha1/namespaces/default/environments?dryRun=All"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies?dryRun=All"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """An API server that knows our kinds."""
    async with control_plane(tmp_path_factory.mktemp("plane") / "plane") as made:
        yield made


async def refusal(plane: ControlPlane, path: str, body: JSON) -> str:
    """Why an object is refused; empty when it is taken."""
    body["metadata"] |= {"namespace": "default"}
    session, server = plane.admin._session, plane.admin._server
    async with session.post(server + path, json=body) as response:
        said = json.loads(await response.text())
        if response.status == 201:
            return ""
        assert response.status == 422, said
        return str(said["message"])


async def of_networking(plane: ControlPlane, **networking: Any) -> str:
    return await refusal(plane, ENVIRONMENTS, environment_body(networking=networking))


async def test_good_names_are_taken(plane: ControlPlane) -> None:
    assert await of_networking(plane, allowedHosts=list(GOOD)) == ""
    for each in GOOD:
        assert await of_networking(plane, allowedHosts=[each]) == "", each


async def test_bad_names_are_refused_by_their_place(plane: ControlPlane) -> None:
    for each in REFUSED_BY_BOTH:
        said = await of_networking(plane, allowedHosts=["fine.example.com", each])
        assert "spec.networking.allowedHosts[1]" in said, each


async def test_as_many_names_as_there_may_be(plane: ControlPlane) -> None:
    many = [f"{index}.{'a' * 60}.{'b' * 60}.example.com" for index in range(257)]
    assert await of_networking(plane, allowedHosts=many[:256]) == ""
    assert "256" in await of_networking(plane, allowedHosts=many)


@pytest.mark.parametrize(
    ("networking", "refused"),
    [
        ({"type": "unrestricted"}, ""),
        ({"allowPackageManagers": True}, ""),
        ({"mcpServers": ["https://mcp.example.com/mcp", "https://mcp.example.com:443"]}, ""),
        ({"mcpServers": ["https://mcp.example.com:8443/mcp"]}, "mcpServers[0]"),
        ({"mcpServers": ["https://10.0.0.1/mcp"]}, "mcpServers[0]"),
        ({"mcpServers": ["https://u@mcp.example.com/mcp"]}, "mcpServers[0]"),
        ({"mcpServers": ["https://*.example.com/mcp"]}, "mcpServers[0]"),
        ({"type": "unrestricted", "allowedHosts": ["a.example.com"]}, "allowedHosts"),
        ({"type": "unrestricted", "allowPackageManagers": True}, "allowPackageManagers"),
        ({"type": "unrestricted", "allowMcpServers": True}, "allowMcpServers"),
        ({"allowedHosts": ["a.example.com", "a.example.com"]}, "allowedHosts[1]"),
    ],
)
async def test_what_goes_together(plane: ControlPlane, networking: JSON, refused: str) -> None:
    said = await of_networking(plane, **networking)
    assert (refused in said) if refused else not said, said


async def test_policies_are_valid_whatever_the_cluster_is_like(plane: ControlPlane) -> None:
    nodes = [f"34.{index // 250}.{index % 250}.{7 * index % 256}/32" for index in range(3000)]
    odd = ["0.0.0.0/1", "10.0.0.0/8", "2001::/16", "2600::/12", "fd00::/8"]
    for own in ([], nodes, odd, ["0.0.0.0/0"], ["::/0"], ["0.0.0.0/0", "::/0"]):
        found = ranges.joined(ranges.networks(own)).ranges
        for policy in manifests.network_policies("default", settings(), found):
            assert await refusal(plane, POLICIES, policy) == ""
