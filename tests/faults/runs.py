"""Many planned calls at once, each lane of them behind a proxy of its own."""

import asyncio
import contextlib
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cloister.aio
from cloister_api.cancelling import being_cancelled
from cloister_api.exec.v1 import exec_pb2
from faults.calls import JOURNALED, Known, Lane, carry_out
from faults.plans import Plan, plan
from faults.streams import SILENCE_SECONDS
from support.fake_kube import fake_kube
from support.fake_sessions import FakeSessions, fake_sessions
from support.fault_proxy import FaultProxy, Kind, fault_proxy
from support.sandbox_server import Sandbox, sandbox

LANES = 16
_SERVER = {"GRPC_VERBOSITY": "NONE", "PYTHONFAULTHANDLER": "1"}
_CALL_SECONDS = 60.0
"""A call that takes longer hangs."""


@dataclass
class World:
    """An exec server with known files, and what a client needs to reach it."""

    server: Sandbox
    sessions: FakeSessions
    kubeconfig: str
    known: Known
    naming: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the next session gets its address."""


@dataclass
class Report:
    """What happened in a run."""

    calls: Counter[str] = field(default_factory=Counter)
    twice: int = 0
    faults: Counter[Kind] = field(default_factory=Counter)
    connections: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Count another run's too."""
        self.calls += other.calls
        self.twice += other.twice
        self.faults += other.faults
        self.connections += other.connections
        self.seconds += other.seconds
        self.problems += other.problems

    def __str__(self) -> str:
        def counts(found: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in sorted(found.items()))

        faults = Counter({kind.value: count for kind, count in self.faults.items()})
        return (
            f"{self.calls.total()} calls ({counts(self.calls)}; {self.twice} of them twice at once)"
            f" over {self.connections} connections, {self.faults.total()} faults"
            f" ({counts(faults)}), {len(self.problems)} problems, {self.seconds:.1f} s"
        )


@contextlib.contextmanager
def world(directory: Path) -> Iterator[World]:
    """A claimed exec server below `directory`, behind the APIs that a client asks for it."""
    with (
        # What gRPC says of broken connections is the point of it all, and thousands of lines.
        sandbox(directory / "sandbox", env=_SERVER) as server,
        fake_sessions(server) as sessions,
        fake_kube() as kube,
    ):
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        kube.client_config = sessions.client_config
        known = Known(server.workspace)
        known.place()
        yield World(server, sessions, kube.kubeconfig(directory), known)


def planned(seed: int, numbers: Sequence[int], scale: float) -> list[Plan]:
    """The calls of these numbers."""
    return [plan(seed, number, scale=scale, silence=SILENCE_SECONDS) for number in numbers]


async def run(place: World, plans: Sequence[Plan], *, lanes: int = LANES) -> Report:
    """Make all calls and check their outcomes, then that each command ran exactly once."""
    report = Report()
    began = time.monotonic()
    waiting = iter(plans)
    async with cloister.aio.AsyncClient(kubeconfig=place.kubeconfig, direct=True) as client:

        async def work(number: int) -> None:
            async with lane_of(place, client, f"lane{number}") as (lane, proxy):
                for each in waiting:
                    await _one(each, lane, proxy, place.known, report)
                    ended = place.server.process.poll()
                    if ended is not None:
                        report.problems.insert(0, f"the exec server ended with {ended}")
                        return
                report.faults += proxy.happened
                report.connections += proxy.connections

        async with asyncio.TaskGroup() as group:
            for number in range(min(lanes, len(plans))):
                group.create_task(work(number))
    report.problems += _journal_problems(place.known, plans)
    report.seconds = time.monotonic() - began
    return report


async def _one(each: Plan, lane: Lane, proxy: FaultProxy, known: Known, report: Report) -> None:
    report.calls[each.work.value] += 1
    report.twice += each.twice
    proxy.arm(each.faults)
    try:
        async with asyncio.timeout(_CALL_SECONDS):
            await carry_out(each, lane, known)
    except (Exception, asyncio.CancelledError):
        # A call that ends as if it were cancelled, and is not, would end its lane without a word.
        if being_cancelled():
            raise
        report.problems.append(f"{each}\n{traceback.format_exc(limit=-6)}")
    finally:
        proxy.arm(())


@contextlib.asynccontextmanager
async def lane_of(
    place: World, client: cloister.aio.AsyncClient, name: str
) -> AsyncIterator[tuple[Lane, FaultProxy]]:
    """A session over two connections through one proxy, which has nothing to do yet."""
    async with fault_proxy(place.server.port) as proxy:
        async with place.naming:
            place.sessions.endpoint = f"127.0.0.1:{proxy.port}"
            session = await client.create_session("env", name=name)
        twin = await client.get_session(name)
        assert session.info.endpoint == f"127.0.0.1:{proxy.port}"
        async with twin, session:
            yield Lane(name, session, twin), proxy


def _journal_problems(known: Known, plans: Sequence[Plan]) -> list[str]:
    """Commands that did not run exactly once."""
    ran = Counter(known.journal())
    return [
        f"{each}\nits command ran {ran[each.id]} times"
        for each in plans
        if each.work in JOURNALED and ran[each.id] != 1
    ]
