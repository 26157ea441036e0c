"""Keeps the gateways' certificate and their way to the internet, in the process that leads."""

import asyncio
import base64
import binascii
import contextlib
import logging
from typing import Final

from cryptography import x509

from .. import names
from ..api.common import JSON
from ..cluster.resources import NETWORK_POLICIES, SECRETS
from ..errors import NotFoundError, OperatorError
from ..identity import OPERATOR_LIFETIME
from ..manifests.gateways import gateway_internet, gateway_secret
from .context import Context

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 50.0
"""Between two looks; each writes the policy again."""
RETRY_SECONDS: Final = 2.0


class GatewayObjects:
    """Level-triggered: each look makes what is missing, old or changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._wake = asyncio.Event()
        context.ranges.listen(self._wake.set)

    async def run(self) -> None:
        """Keep them until cancelled."""
        while True:
            self._wake.clear()
            pause = LOOK_SECONDS
            try:
                await self.look()
            except OperatorError as error:
                log.warning("what the egress gateways need cannot be kept: %s", error)
                pause = RETRY_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    async def look(self) -> None:
        """Make what is missing; raises OperatorError."""
        await self._certificate()
        ranges = self._context.ranges.current
        if ranges is not None:
            policy = gateway_internet(self._context.settings, ranges)
            namespace = self._context.settings.namespace
            await self._context.api.apply(NETWORK_POLICIES, namespace, policy)

    async def _certificate(self) -> None:
        context = self._context
        namespace, now = context.settings.namespace, context.clock()
        try:
            found = await context.api.get(SECRETS, namespace, names.EGRESS_GATEWAY)
        except NotFoundError:
            found = {}
        if not self._serves(found):
            identity = context.authority.egress_gateway_server(now)
            body = gateway_secret(context.settings, identity)
            await context.api.apply(SECRETS, namespace, body)
            log.info("issued the egress gateways' certificate")

    def _serves(self, secret: JSON) -> bool:
        """Whether gateways can go on with it: it lasts, and they trust whom the operator trusts."""
        context = self._context
        try:
            data = {
                key: base64.b64decode(value, validate=True)
                for key, value in (secret.get("data") or {}).items()
            }
            certificate = x509.load_pem_x509_certificate(data["tls.crt"])
        except (KeyError, ValueError, binascii.Error):
            return False
        rest = certificate.not_valid_after_utc - context.clock()
        whole = data.get("ca.crt") == context.authority.ca_pem and bool(data.get("tls.key"))
        return whole and rest > OPERATOR_LIFETIME / 3
