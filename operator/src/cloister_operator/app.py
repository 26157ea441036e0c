"""Start-up and shutdown order."""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from . import __version__
from .cluster.api import HttpApi
from .cluster.reviewer import ClusterReviewer
from .controller import bootstrap
from .controller.backend import Backend
from .controller.context import Context
from .controller.controller import Controller
from .controller.events import Recorder
from .controller.observe import Health, keep_gauges
from .errors import OperatorError
from .handlers import Watcher
from .http import HttpServer
from .metrics import BUILD, CA_EXPIRES
from .sandboxes import Sandboxes
from .sessions_api.server import SessionsServer
from .settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")
GRACE_SECONDS = 5.0


def now() -> datetime:
    """The present time, in UTC."""
    return datetime.now(UTC)


async def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; the answer is the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    api = await HttpApi.connect()
    try:
        main = asyncio.create_task(_serve(api, settings))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({main, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not main.done():
            log.info("stopping")
            main.cancel()
        result = (await asyncio.gather(main, return_exceptions=True))[0]
        stopping.cancel()
        if isinstance(result, asyncio.CancelledError):
            return 0
        log.error("the operator ends", exc_info=result)
        return 1
    finally:
        await api.close()


async def _serve(api: HttpApi, settings: Settings) -> None:
    """All parts, in the order in which they need each other; ends only by an exception."""
    authority = await _until(
        "the certificate authority", lambda: bootstrap.authority(api, settings, now())
    )
    BUILD.labels(__version__).set(1)
    CA_EXPIRES.set(authority.not_after.timestamp())
    dialer = Sandboxes(authority)
    context = Context(api, dialer, authority, settings, now)
    recorder = Recorder(api, socket.gethostname(), now)
    controller = Controller(context, recorder)
    backend = Backend(context)
    health = Health(context)
    http = HttpServer(health)
    await http.start()
    try:
        address = await _until(
            "the clients' configuration",
            lambda: bootstrap.publish(api, settings, authority.ca_pem, __version__),
        )
        context.probe_targets = bootstrap.probe_targets(settings)
        await _until(
            "the positive control of the network probe",
            lambda: bootstrap.check_targets(context.probe_targets),
        )
        log.info("sandboxes must not reach %s", ", ".join(context.probe_targets))
        async with asyncio.TaskGroup() as group:
            group.create_task(controller.run(), name="controller")
            group.create_task(keep_gauges(context), name="gauges")
            await context.synced.wait()
            lost = loop_failure()
            watcher = Watcher(controller.observe, lambda: lost.set_exception(KopfEnded()))
            watcher.start()
            sessions = SessionsServer(
                backend,
                ClusterReviewer(api),
                authority,
                ip_addresses=[address.rpartition(":")[0].strip("[]")],
            )
            await sessions.start()
            health.missing = None
            log.info("ready: %s environments", len(context.environments.all()))
            try:
                await lost
            finally:
                health.missing = "the operator is stopping"
                await sessions.stop(GRACE_SECONDS)
                await watcher.stop()
    finally:
        await http.stop()
        await dialer.aclose()


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
