"""What must stand before the first session: the clients' configuration, probe targets."""

import asyncio

from .. import manifests, names
from ..api.common import JSON
from ..cluster.api import Api
from ..cluster.login import api_server
from ..cluster.resources import CONFIG_MAPS, SERVICES
from ..errors import NotFoundError, TransientError
from ..settings import Settings

CONTROL_SECONDS = 5.0


def service_address(service: JSON) -> str:
    """Where clients in the cluster dial the Sessions API: no DNS is needed for it."""
    return names.joined(service["spec"]["clusterIP"], names.SESSIONS_PORT)


async def address(api: Api, settings: Settings) -> str:
    """Where clients find the Sessions API."""
    return service_address(await api.get(SERVICES, settings.namespace, settings.service))


async def gateway_address(api: Api, settings: Settings) -> str:
    """host:port at which sandboxes reach the egress gateways; empty where there are none."""
    if not settings.egress_gateway:
        return ""
    try:
        service = await api.get(SERVICES, settings.namespace, names.EGRESS_GATEWAY)
    except NotFoundError:
        return ""
    return names.joined(service["spec"]["clusterIP"], names.EGRESS_PORT)


async def publish(api: Api, settings: Settings, ca_pem: bytes, address: str, version: str) -> None:
    """Write the ConfigMap by which clients find the Sessions API."""
    body = manifests.client_config(settings, ca_pem, address, version)
    await api.apply(CONFIG_MAPS, settings.namespace, body)


def probe_targets(settings: Settings) -> list[str]:
    """host:port that no sandbox may reach: the API server and the operator itself."""
    return [api_server(), names.joined(settings.pod_ip, names.SESSIONS_PORT)]


async def reaches(target: str) -> bool:
    """Whether this process can open a TCP connection to host:port."""
    try:
        await _connect(target)
    except OSError:
        return False
    return True


async def check_targets(targets: list[str]) -> None:
    """The positive control: what nobody can reach proves nothing.

    Raises TransientError for a target that this process does not reach itself.
    """
    for target in targets:
        try:
            await _connect(target)
        except OSError as error:
            message = f"the operator does not reach {target} itself: {error}"
            raise TransientError(message) from None


async def _connect(target: str) -> None:
    host, _, port = target.rpartition(":")
    async with asyncio.timeout(CONTROL_SECONDS):
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.close()
