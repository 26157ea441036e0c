"""Assembles the server, prepares the pod, and stops everything in order."""

import asyncio
import contextlib
import ctypes
import gc
import importlib
import logging
from collections.abc import Sequence
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2_grpc
from cloister_api.liveness import signs_of_life
from cloister_api.wire import NOT_PACKED

from . import guard, memory, signals, threads, unborn
from .authorize import Authorizer
from .calls import Calls
from .config import Config, ConfigError
from .contexts import Contexts
from .finishing import for_ever
from .identity import ServerIdentity
from .looks import in_thread
from .outside import OUTSIDE
from .processes import Reaper
from .programs import Programs
from .recipe import Recipe, RecipeError, carry_out, limit
from .registries import package_sources
from .services.files import FilesService
from .services.health import HealthHandler
from .services.processes import ProcessesService
from .services.runtime import RuntimeService
from .services.shells import ShellsService
from .services.tools import ToolsService
from .shells import Shells
from .state import Activity, Phase, ServerState

MAX_MESSAGE = 32 * 1024 * 1024
"""Bytes; a PDF of the largest size that `read` returns fits."""
MAX_PENDING = 2048
"""Calls that wait for the event loop to see them."""
MAX_STREAMS = 1024
"""Calls of one connection; gRPC's clients let more wait, and what else sends them is refused them.
Without a bound one that opens and resets them keeps the event loop for seconds."""
MAX_RPCS = 4096
"""Calls of all connections, those included that never send their request."""
MAX_CONNECTIONS = 1024
"""Tools reach the port, too; 40 KB each."""
DRAIN_SECONDS = 3.0
"""Below the pod's grace period, so that results still leave before the kubelet's SIGKILL."""
_LAST_CALLS = 2.0
"""Seconds for calls to deliver their results after they were ended."""
_CLOSING = 2.0
"""Seconds for gRPC to close connections, one of them for calls to end: where many were cut in the
middle of a handshake or a call, it was seen to wait without end for one that there was no more.
"""
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_M_ARENA_MAX = -8
log = logging.getLogger(__name__)


def harden() -> None:
    """Close this process to its children: no core dumps, no ptrace, no /proc/<pid>/mem, no limits
    set from without.

    Raises ConfigError when the kernel refuses: a server that can be read must not hold a key.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ConfigError("the server cannot be made non-dumpable; not serving")
    # Memory that one thread gave back is of use to the others: a fifth less after bulk transfers.
    libc.mallopt(_M_ARENA_MAX, 2)
    # Orphans of tools come to us also where we are not PID 1.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard.install()


class Server:
    """One exec server."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._identity = ServerIdentity.load(config.identity_dir)
        self._state = ServerState(environment=config.tool_environment())
        self._reaper = Reaper()
        self._calls = Calls()
        self._activity = Activity()
        self._contexts = Contexts(config, self._state, self._reaper)
        self._programs = Programs(self._reaper, self._activity)
        self._shells = Shells(config.state_dir, self._reaper, self._activity, self._programs.jobs)
        self._files = FilesService(self._state, self._contexts.roots, self._activity)
        self._stopping = asyncio.Event()
        self._grpc: grpc.aio.Server | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._preparing: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> "asyncio.Task[None]":
        """Serve. Returns what prepares the pod; it is done when the pod is warm, has failed for
        good or is drained.
        """
        signals.watch_children(self._reaper.reap)
        await threads.prepare()
        await self._reaper.hands.run(int)
        await in_thread(int)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.keepalive_permit_without_calls", 1),
                # A worker that vanished must not hold streams, and keep the session busy, for
                # hours.
                *signs_of_life(60, within=20),
                # Nor may who never finishes a handshake hold a descriptor for minutes.
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                # Compressed, a message of the largest size takes 32 KB, and it is unpacked before
                # its caller is known.
                NOT_PACKED,
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                # It counts calls that have just ended, and would refuse those of honest clients.
                ("grpc.http.overload_protection", 0),
                ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
                # Our own bounds answer with RESOURCE_EXHAUSTED; gRPC's would cancel some calls.
                ("grpc.server.max_pending_requests", MAX_PENDING),
                ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_PENDING),
            ],
            maximum_concurrent_rpcs=MAX_RPCS,
        )
        guarded: Any = Authorizer(self._state)
        exec_pb2_grpc.add_ToolsServicer_to_server(
            ToolsService(self._state, self._contexts, self._calls, self._activity), guarded
        )
        exec_pb2_grpc.add_ShellsServicer_to_server(
            ShellsService(self._config, self._state, self._shells), guarded
        )
        exec_pb2_grpc.add_ProcessesServicer_to_server(
            ProcessesService(self._config, self._state, self._programs), guarded
        )
        exec_pb2_grpc.add_FilesServicer_to_server(self._files, guarded)
        exec_pb2_grpc.add_RuntimeServicer_to_server(
            RuntimeService(
                self._config,
                self._state,
                self._identity,
                self._activity,
                self.drain,
                self._package_sources,
            ),
            guarded,
        )
        guarded.add_generic_rpc_handlers((HealthHandler(self._state),))
        server.add_generic_rpc_handlers((guarded,))
        self.port = server.add_secure_port(self._config.listen, self._identity.credentials())
        await server.start()
        self._grpc = server
        # Before the first tool runs.
        OUTSIDE.close(self._config.listen, self.port)
        # Python loads it with the first name of a host. By then tools that are root could have
        # changed it; and before now the start would have waited for it.
        importlib.import_module("encodings.idna")
        # What is there now stays: no collection needs to look at it again.
        gc.freeze()
        gc.enable()
        self._watching = [asyncio.create_task(for_ever(each.watch)) for each in (memory, unborn)]
        self._preparing = asyncio.create_task(self._prepare())
        return self._preparing

    async def _prepare(self) -> None:
        self._config.state_dir.mkdir(parents=True, exist_ok=True)
        if not self._config.ipv6:
            # Our own port is open by now.
            guard.close_ipv6()
        try:
            recipe = Recipe.load(self._config.recipe_dir)
            limit(recipe.limits)
            self._state.environment.update(recipe.env)
            await carry_out(
                recipe,
                self._config.recipe_dir,
                self._config.workspace,
                self._config.state_dir,
                self._state.environment,
                self._reaper,
                kept_roots=self._config.kept_roots,
                bring=self._bring,
                proof=self._proof,
            )
        except RecipeError as error:
            if self._become(Phase.FAILED):
                self._state.problem = str(error)
                log.warning("the exec server cannot become warm: its recipe failed")
            return
        if self._become(Phase.WARM):
            log.info("exec server ready on port %d", self.port)

    def _become(self, phase: Phase) -> bool:
        """The end of the preparation, unless the server was drained meanwhile."""
        if self._state.phase is not Phase.PREPARING:
            return False
        self._state.phase = phase
        return True

    async def _bring(self, trees: Sequence[str]) -> None:
        """Wait until the operator has uploaded these directories, however long it takes: it gives
        the pod up itself.
        """
        self._state.awaits.update(trees)
        while self._state.awaits:
            self._state.arrived.clear()
            await self._state.arrived.wait()

    async def _proof(self) -> None:
        """Wait until the operator says that the network is closed: what is next may be hostile."""
        self._state.awaits_proof = True
        await self._state.proven.wait()
        self._state.awaits_proof = False

    async def _package_sources(self) -> list[tuple[str, str]]:
        return await package_sources(
            self._config.workspace,
            self._config.state_dir,
            self._config.tool_environment(),
            self._reaper,
        )

    async def drain(self, grace: float) -> None:
        """Refuse new calls, let running ones finish for `grace` seconds, end the rest.

        Nobody wants a pod any more that is being prepared: that ends at once.
        """
        self._state.phase = Phase.DRAINING
        if self._preparing is not None:
            self._preparing.cancel()
            self._state.awaits.clear()
            self._state.awaits_proof = False
        await asyncio.gather(
            self._calls.settle(grace),
            self._programs.jobs.settle(grace),
            self._shells.jobs.settle(grace),
        )
        # At once: a tool can have one of them take seconds to end, and nobody else's result may
        # wait for that until the kubelet's SIGKILL. Shells first: what they run becomes no program.
        await asyncio.gather(
            self._shells.close_all(),
            self._programs.close(),
            self._end_calls(),
            self._end_preparation(),
        )

    async def _end_preparation(self) -> None:
        """The setup script ends with its shell."""
        if self._preparing is not None:
            await asyncio.wait([self._preparing], timeout=_LAST_CALLS)

    async def _end_calls(self) -> None:
        """Commands end with their shells, which no call opens again; then what is no command."""
        await self._contexts.close_all()
        self._calls.stop_all()
        await self._calls.settle(_LAST_CALLS)

    async def run(self) -> None:
        """Serve until the pod is ended (see signals), then drain and stop."""
        loop = asyncio.get_running_loop()
        signals.watch(lambda: loop.call_soon_threadsafe(self._stopping.set))
        preparing = await self.start()
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([preparing, stopping], return_when=asyncio.FIRST_COMPLETED)
        if preparing.done() and not preparing.cancelled():
            preparing.result()  # what nobody foresaw ends the server
        await stopping
        log.info("exec server stopping")
        await self.stop()

    async def stop(self) -> None:
        """End calls, processes and connections, in that order."""
        await self.drain(DRAIN_SECONDS)
        for each in self._watching:
            each.cancel()
        OUTSIDE.release()
        if self._grpc is not None:
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    async with asyncio.timeout(_CLOSING):
                        await self._grpc.stop(grace=_CLOSING / 2)
            except TimeoutError:
                log.warning("connections did not close: they end with this process")
        await self._files.close()
