"""Start-up and shutdown order."""

import asyncio
import gc
import logging
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from . import __version__, names
from .cluster.api import HttpApi
from .cluster.fence import Fenced
from .cluster.reviewer import ClusterReviewer
from .controller import authority as certificates
from .controller import bootstrap, observe
from .controller.admission import SelfTest
from .controller.backend import Backend
from .controller.context import Context
from .controller.controller import Controller
from .controller.decisions import Decisions
from .controller.election import Election, Term
from .controller.events import Recorder
from .controller.gateway_link import Lead
from .controller.gateway_objects import GatewayObjects
from .controller.git_servers import fetcher
from .errors import OperatorError
from .handlers import Watcher
from .http import HttpServer
from .metrics import LEADER
from .sandboxes import Sandboxes
from .sandboxes.gateways import EgressGateways
from .sessions_api.limits import of_settings
from .sessions_api.server import SessionsServer
from .settings import Settings
from .tasks import EndedAlone, Part, keep, lasting, together

log = logging.getLogger(__name__)
T = TypeVar("T")
GRACE_SECONDS = 5.0
"""For calls of the Sessions API that are under way at the end."""
FINISH_SECONDS = 2.0
"""For reconciles that are under way at the end, before another operator may lead."""


async def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the answer is the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    api = await HttpApi.connect()
    try:
        main = asyncio.create_task(_serve_on(api, settings))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({main, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not main.done():
            log.info("stopping")
            main.cancel()
        result = (await asyncio.gather(main, return_exceptions=True))[0]
        stopping.cancel()
        if stop.is_set() and isinstance(result, asyncio.CancelledError):
            return 0
        log.error("the operator ends", exc_info=result)
        return 1
    finally:
        await api.close()


async def _serve_on(api: HttpApi, settings: Settings) -> None:
    """Serve, and begin anew whenever the lead was lost: as after a restart, for what this process
    believed is worth nothing once another one may have decided.
    """
    while True:
        try:
            await _serve(api, settings)
        except* LeadLost:
            log.warning("the lead was lost; beginning anew")
            # The mirror of before was frozen: it would never be collected, and stay beside the
            # next one.
            gc.unfreeze()


async def _serve(api: HttpApi, settings: Settings) -> None:
    """All parts, in the order in which they need each other; ends only by an exception."""
    now = api.clock
    generations = await _until(
        "the certificate authority", lambda: certificates.read_or_make(api, settings, now())
    )
    authority = generations.authority()
    certificates.observe(generations)
    observe.begin(__version__)
    dialer = Sandboxes(authority, clock=now)
    own = names.joined(settings.pod_ip, names.SESSIONS_PORT)
    election = Election(api, settings.namespace, _identity(settings), own, now)
    context = Context(Fenced(api, election.leads), dialer, authority, settings, now)
    if settings.git_allowed_hosts:
        context.repositories.fetches = fetcher(settings, lambda: context.ranges.current)
    gateways = EgressGateways(authority, clock=now)
    recorder = Recorder(context.api, socket.gethostname(), now)
    controller = Controller(context, recorder)
    health = observe.Health(context)
    http = HttpServer(health)
    await http.start()
    try:
        address = await _until("the Service's address", lambda: bootstrap.address(api, settings))
        context.probe_targets = bootstrap.probe_targets(settings)
        context.reaches = bootstrap.reaches
        log.info("sandboxes must not reach %s", ", ".join(context.probe_targets))
        sessions = SessionsServer(
            Backend(context),
            ClusterReviewer(api),
            authority,
            ip_addresses=[address.rpartition(":")[0].strip("[]"), settings.pod_ip],
            limits=of_settings(settings),
            leadership=election,
            clock=now,
        )

        async def publish() -> None:
            await bootstrap.publish(context.api, settings, authority.ca_pem, address, __version__)

        async def term() -> None:
            # Published for clients as well, if a leader before this one did not come to it.
            await _until("the certificate authority", rotation.look)
            await controller.relist()
            if settings.admission_policies:
                # Before anything is decided: nobody is to be told that they are unknown.
                await self_test.look()
            LEADER.set(1)
            try:
                parts: dict[str, Part] = {
                    "controller": controller.work,
                    "rotation": rotation.lead,
                    "gauges": observe.Gauges(context).run,
                }
                if settings.admission_policies:
                    parts["admission"] = self_test.run
                if settings.egress_gateway:
                    lead = Lead(election.term, election.leads, gateways, context.api)
                    told = Decisions(context, recorder)
                    parts["egress"] = partial(context.egress.run, lead, told)
                    parts["gateways' objects"] = GatewayObjects(context).run
                await together(parts)
            finally:
                LEADER.set(0)

        rotation = certificates.Rotation(context, publish)
        self_test = SelfTest(context)

        async with asyncio.TaskGroup() as group:
            mirror = keep(group, "mirror", controller.mirror)
            following = keep(group, "the CA", rotation.follow)
            await context.synced.wait()
            # As after the imports: thousands of pods stay as they are for long.
            gc.collect()
            gc.freeze()
            lost = loop_failure()
            watcher = Watcher(controller.observe, lambda: lost.set_exception(KopfEnded()))
            watcher.start()
            await sessions.start()
            await _until(
                "the positive control of the network probe",
                lambda: bootstrap.check_targets(context.probe_targets),
            )
            standing = group.create_task(stand(election, term), name="election")
            health.missing = None
            log.info("ready: %s environments", len(context.environments.all()))
            try:
                await lost
            finally:
                health.missing = "the operator is stopping"
                # What has begun is finished, then the Lease is released, and only then do calls
                # end: those that wait for a session see in the mirror how the next leader gives it.
                if election.leads():
                    await controller.finish(FINISH_SECONDS)
                election.resign()
                await asyncio.wait({standing})
                await sessions.stop(GRACE_SECONDS)
                await watcher.stop()
                following.cancel()
                mirror.cancel()
    finally:
        await http.stop()
        await dialer.aclose()
        await gateways.aclose()


def _identity(settings: Settings) -> str:
    """Nobody else's: a pod's name, which a container that starts again in the pod keeps, and so
    need not wait for the Lease that it held to run out.
    """
    return settings.pod_name or f"{socket.gethostname()}-{secrets.token_hex(4)}"


async def stand(election: Election, term: Term) -> None:
    """Stand for election until resigned; raises LeadLost when that ends before."""
    try:
        await lasting("the election", partial(election.run, term))
    except EndedAlone as error:
        if not election.resigned:
            raise LeadLost from error


class LeadLost(Exception):
    """Another operator may lead now."""


class KopfEnded(Exception):
    """The watch of custom resources ended: the process must start again."""


def loop_failure() -> "asyncio.Future[None]":
    """A future that only ever fails."""
    return asyncio.get_running_loop().create_future()


async def _until(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat what must succeed before anything else."""
    pause = 0.2
    while True:
        try:
            return await attempt()
        except OperatorError as error:
            log.warning("waiting for %s: %s", what, error)
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)
