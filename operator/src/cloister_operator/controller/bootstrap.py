"""What must stand before the first session: the CA, the clients' configuration, probe targets."""

import asyncio
import base64
import logging
import os
from datetime import datetime

from .. import manifests, names
from ..api.common import JSON
from ..cluster.api import Api
from ..cluster.resources import CONFIG_MAPS, SECRETS, SERVICES
from ..errors import ConflictError, NotFoundError, TransientError
from ..identity import Authority
from ..settings import Settings

log = logging.getLogger(__name__)
CONTROL_SECONDS = 5.0


async def authority(api: Api, settings: Settings, now: datetime) -> Authority:
    """The CA: read, or made once. Of two operators that start together one makes it."""
    try:
        found = await api.get(SECRETS, settings.namespace, names.CA_SECRET)
    except NotFoundError:
        made = Authority.create(now)
        body = manifests.ca_secret(settings, made.to_secret_data())
        try:
            await api.create(SECRETS, settings.namespace, body)
        except ConflictError:
            found = await api.get(SECRETS, settings.namespace, names.CA_SECRET)
        else:
            log.info("made the certificate authority")
            return made
    data = {key: base64.b64decode(value) for key, value in found["data"].items()}
    return Authority.from_pem(data["tls.crt"], data["tls.key"])


def service_address(service: JSON) -> str:
    """Where clients in the cluster dial the Sessions API: no DNS is needed for it."""
    return joined(service["spec"]["clusterIP"], names.SESSIONS_PORT)


async def address(api: Api, settings: Settings) -> str:
    """Where clients find the Sessions API."""
    return service_address(await api.get(SERVICES, settings.namespace, settings.service))


async def publish(api: Api, settings: Settings, ca_pem: bytes, address: str, version: str) -> None:
    """Write the ConfigMap by which clients find the Sessions API."""
    body = manifests.client_config(settings, ca_pem, address, version)
    await api.apply(CONFIG_MAPS, settings.namespace, body)


def joined(host: str, port: str | int) -> str:
    """An address as clients dial it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def api_server() -> str:
    """host:port of the API server, as the kubelet tells every pod."""
    return joined(os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"])


def probe_targets(settings: Settings) -> list[str]:
    """host:port that no sandbox may reach: the API server and the operator itself."""
    return [api_server(), joined(settings.pod_ip, names.HTTP_PORT)]


async def check_targets(targets: list[str]) -> None:
    """The positive control: what nobody can reach proves nothing.

    Raises TransientError for a target that this process does not reach itself.
    """
    for target in targets:
        host, _, port = target.rpartition(":")
        try:
            async with asyncio.timeout(CONTROL_SECONDS):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError as error:
            message = f"the operator does not reach {target} itself: {error}"
            raise TransientError(message) from None
        writer.close()
