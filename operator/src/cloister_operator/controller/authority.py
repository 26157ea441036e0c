"""The CA: read, made once, and rotated so that nobody's connection or certificate is cut off.

Every process reads the Secret again and again, for whoever leads may have changed it. The leader
tells exec servers, publishes what clients are to trust, and makes the steps of plan/rotation.
"""

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from .. import manifests, names
from ..api.pod import PodView
from ..cluster.api import Api
from ..cluster.resources import SECRETS
from ..errors import ConflictError, NotFoundError, OperatorError, TransientError
from ..generations import MAX_FORMER, Generations
from ..metrics import CA_EXPIRES, CA_GENERATIONS, CA_UNTOLD
from ..plan import rotation
from ..plan.rotation import Facts, Step
from ..settings import Settings
from .context import Context, address

log = logging.getLogger(__name__)

READ_SECONDS: Final = 30.0
"""How long a process may not know what the leader did: far shorter than the overlap."""
_TELLERS: Final = 8
"""Exec servers that are told at the same time."""


@dataclass(frozen=True)
class Stored:
    """The Secret's content, and what it takes to change that very state of it."""

    generations: Generations
    version: str
    request: str
    """The annotation that asks for a new CA; empty for none."""


async def read(api: Api, settings: Settings) -> Stored:
    """The CA as it is stored; raises NotFoundError, and TransientError for what cannot be read."""
    found = await api.get(SECRETS, settings.namespace, names.CA_SECRET)
    data = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    try:
        generations = Generations.from_secret_data(data)
    except ValueError as error:
        raise TransientError(f"Secret {settings.namespace}/{names.CA_SECRET}: {error}") from None
    metadata = found["metadata"]
    request = (metadata.get("annotations") or {}).get(names.ROTATE_CA, "")
    return Stored(generations, metadata["resourceVersion"], request)


async def read_or_make(api: Api, settings: Settings, now: datetime) -> Generations:
    """The CA: read, or made once. Of two operators that start together one makes it."""
    try:
        return (await read(api, settings)).generations
    except NotFoundError:
        made = Generations.first(now)
        body = manifests.ca_secret(settings, made.to_secret_data())
        try:
            await api.create(SECRETS, settings.namespace, body)
        except ConflictError:
            return (await read(api, settings)).generations
        log.info("made the certificate authority")
        return made


class Rotation:
    """Keeps `context.authority` as the Secret says and, in the process that leads, rotates it.

    What exec servers were told is remembered by this object alone: the next leader tells them
    again, which changes nothing.
    """

    def __init__(self, context: Context, publish: Callable[[], Awaitable[None]]) -> None:
        """`publish`: writes for clients whom to trust; raises OperatorError."""
        self._context = context
        self._publish = publish
        self._published = b""
        self._told: dict[str, bytes] = {}
        """By pod UID, the CAs that the pod was told to trust."""

    async def follow(self) -> None:
        """Take over what the Secret says, until cancelled."""
        while True:
            await asyncio.sleep(READ_SECONDS)
            try:
                self._adopt((await read(self._context.api, self._context.settings)).generations)
            except OperatorError as error:
                log.warning("the CA cannot be read: %s", error)

    async def lead(self) -> None:
        """Look again and again what is due, until cancelled."""
        seconds = min(READ_SECONDS, max(1.0, self._context.settings.ca_overlap_seconds / 4))
        while True:
            try:
                await self.look()
            except OperatorError as error:
                log.warning("the CA cannot be looked after: %s", error)
            await asyncio.sleep(seconds)

    async def look(self) -> Step:
        """Tell whom there is to tell, and make the step that is due; raises OperatorError."""
        context = self._context
        stored = await read(context.api, context.settings)
        generations = stored.generations
        self._adopt(generations)
        if self._published != context.authority.ca_pem:
            bundle = context.authority.ca_pem
            await self._publish()
            self._published = bundle
        before = [
            pod
            for pod in context.pods.all()
            if pod.alive and rotation.is_from_before(pod.created, generations.changed_at)
        ]
        await self._tell(before)
        untold = sum(1 for pod in before if self._told.get(pod.uid) != context.authority.ca_pem)
        CA_UNTOLD.set(untold)
        facts = Facts(
            changed_at=generations.changed_at,
            ends=generations.issuing.not_after,
            upcoming=generations.upcoming is not None,
            former=len(generations.former),
            requested=stored.request not in ("", generations.request),
            untold=untold,
            from_before=len(before),
        )
        now = context.clock()
        overlap = timedelta(seconds=context.settings.ca_overlap_seconds)
        step = rotation.plan(facts, now, overlap, MAX_FORMER)
        match step:
            case Step.INTRODUCE:
                await self._write(stored, generations.introduced(now, stored.request))
                log.info("made a new CA, which everybody is told to trust before it signs")
            case Step.SWITCH:
                await self._write(stored, generations.switched(now))
                log.info("the new CA signs from now on")
            case Step.DROP:
                await self._write(stored, generations.dropped(now))
                log.info("the earlier CA is trusted no more")
            case Step.NONE:
                pass
        return step

    async def _write(self, stored: Stored, changed: Generations) -> None:
        """Store it, if nobody has changed the Secret since it was read."""
        context = self._context
        body = manifests.ca_secret(context.settings, changed.to_secret_data())
        await context.api.json_patch(
            SECRETS,
            context.settings.namespace,
            names.CA_SECRET,
            [
                {"op": "test", "path": "/metadata/resourceVersion", "value": stored.version},
                {"op": "replace", "path": "/data", "value": body["data"]},
            ],
        )
        self._adopt(changed)

    def _adopt(self, generations: Generations) -> None:
        if generations.adopt(self._context.authority):
            log.info("%d certificate authorities are trusted", len(generations.also_trusted) + 1)
        observe(generations)

    async def _tell(self, pods: list[PodView]) -> None:
        """Let exec servers trust what this process trusts; those that do not answer wait."""
        bundle, free = self._context.authority.ca_pem, asyncio.Semaphore(_TELLERS)
        present = {pod.uid for pod in self._context.pods.all()}
        self._told = {uid: told for uid, told in self._told.items() if uid in present}

        async def tell(pod: PodView) -> None:
            async with free:
                try:
                    await self._context.dialer.trust(address(pod), pod.session_uid, bundle)
                except OperatorError as error:
                    log.info("pod %s is told of the CA later: %s", pod.name, error)
                else:
                    self._told[pod.uid] = bundle

        told = [pod for pod in pods if pod.ip and self._told.get(pod.uid) != bundle]
        await asyncio.gather(*(tell(pod) for pod in told))


def observe(generations: Generations) -> None:
    """Set the figures."""
    CA_EXPIRES.set(generations.issuing.not_after.timestamp())
    CA_GENERATIONS.labels("upcoming").set(int(generations.upcoming is not None))
    CA_GENERATIONS.labels("former").set(len(generations.former))
