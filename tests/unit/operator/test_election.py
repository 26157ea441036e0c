"""The Lease: one leads at a time, whatever goes wrong, and another one soon after it ended."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import names
from cloister_operator.cluster.fence import Fenced
from cloister_operator.cluster.resources import CONFIG_MAPS, LEASES
from cloister_operator.controller.election import Election
from cloister_operator.errors import TransientError
from cloister_operator.plan.lease import (
    DEADLINE,
    DURATION,
    LOOK_EVERY,
    Record,
    may_take,
    read,
    seen,
)
from simulation.loop import SimulatedLoop
from support.fake_api import Connection, FakeCluster, Fault
from support.fake_operator import Clock
from support.operator_objects import NOW

SYSTEM = "cloister-system"


class Candidate:
    """An operator as far as the election goes."""

    def __init__(
        self, cluster: FakeCluster, name: str, connection: Connection | None = None
    ) -> None:
        self.name = name
        self.connection = connection or Connection(cluster)
        # Clocks of the day that are hours apart: nothing may rest on them.
        away = timedelta(hours=sum(name.encode()) % 7 - 3)
        self.election = Election(
            self.connection,
            SYSTEM,
            name,
            f"{name}:8443",
            lambda: NOW + away + timedelta(seconds=now()),
        )
        self.terms = 0
        self.acting = False
        self.fails = asyncio.Event()
        self.task = asyncio.create_task(self._stand())

    async def _stand(self) -> None:
        while not self.election.resigned:
            await self.election.run(self._term)

    async def _term(self) -> None:
        self.terms += 1
        self.acting = True
        try:
            await self.fails.wait()
            raise ValueError("the term failed")
        finally:
            self.acting = False

    async def leave(self) -> None:
        """A clean exit."""
        self.election.resign()
        await self.task

    def die(self) -> None:
        """kill -9: nothing of it reaches the cluster any more."""
        self.connection.killed.set()


def simulated(seed: int, story: Callable[[FakeCluster], Awaitable[None]]) -> None:
    """Run a story in virtual time, on a cluster with the operator's namespace."""
    loop = SimulatedLoop(random.Random(seed))

    async def main() -> None:
        cluster = FakeCluster(Clock(), namespaces={SYSTEM: {}})
        try:
            await story(cluster)
        finally:
            loop.ending = True
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for each in others:
                each.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


def now() -> float:
    return asyncio.get_running_loop().time()


async def elected(*candidates: Candidate) -> Candidate:
    """The one that leads, once one does."""
    while True:
        leading = [each for each in candidates if each.election.leads() and each.acting]
        assert len(leading) < 2
        if leading:
            return leading[0]
        await asyncio.sleep(0.01)


async def over(candidate: Candidate) -> None:
    """Wait until it acts no more."""
    while candidate.acting:  # noqa: ASYNC110 - time is virtual
        await asyncio.sleep(0.01)


def spec(cluster: FakeCluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.get(LEASES, SYSTEM, names.LEASE)["spec"]
    return found


def test_the_first_leads_and_the_second_knows_where() -> None:
    async def story(cluster: FakeCluster) -> None:
        first, second = Candidate(cluster, "a"), Candidate(cluster, "b")
        leader = await elected(first, second)
        other = second if leader is first else first
        await asyncio.sleep(10 * DURATION)
        assert leader.election.leads()
        assert leader.terms == 1
        assert not other.election.leads()
        assert other.terms == 0
        assert other.election.leader() == f"{leader.name}:8443"
        assert leader.election.leader() == ""
        assert spec(cluster)["leaseTransitions"] == 0

    simulated(1, story)


def test_after_a_clean_exit_the_next_leads_at_its_next_look() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        await elected(first)
        second = Candidate(cluster, "b")
        await asyncio.sleep(3)
        await first.leave()
        began = now()
        assert not first.acting
        assert spec(cluster)["holderIdentity"] == ""
        await elected(second)
        assert now() - began < LOOK_EVERY + 0.1
        assert spec(cluster)["leaseTransitions"] == 1

    simulated(2, story)


def test_after_a_crash_the_next_leads_when_the_lease_has_run_out() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        await elected(first)
        second = Candidate(cluster, "b")
        await asyncio.sleep(7.3)
        first.die()
        began = now()
        await elected(second)
        assert DEADLINE - 2 < now() - began < DURATION + LOOK_EVERY + 0.1

    simulated(3, story)


def test_a_leader_that_starts_again_under_its_name_need_not_wait() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        await elected(first)
        first.die()
        began = now()
        await elected(Candidate(cluster, "a"))
        assert now() - began < 0.1

    simulated(4, story)


def test_a_leader_that_cannot_renew_stops_before_another_one_may_begin() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        await elected(first)
        second = Candidate(cluster, "b")
        await asyncio.sleep(5)
        first.connection.away = True
        began = now()
        await over(first)
        stopped = now()
        assert not first.election.leads()
        assert stopped - began < DEADLINE + 0.1
        await elected(second)
        assert now() - stopped > (DURATION - DEADLINE) / 2
        first.connection.away = False
        await asyncio.sleep(5 * DURATION)
        assert await elected(first, second) is second

    simulated(5, story)


def test_a_leader_whose_calls_hang_stops_as_well() -> None:
    async def story(cluster: FakeCluster) -> None:
        hang = asyncio.Event()
        connection = Connection(cluster, latency=lambda: 1e6 if hang.is_set() else 0.001)
        first = Candidate(cluster, "a", connection)
        await elected(first)
        hang.set()
        began = now()
        await over(first)
        assert now() - began < DEADLINE + 0.1

    simulated(6, story)


def test_when_the_api_server_was_away_the_same_one_leads_on() -> None:
    async def story(cluster: FakeCluster) -> None:
        both = Candidate(cluster, "a"), Candidate(cluster, "b")
        leader = await elected(*both)
        for each in both:
            each.connection.away = True
        await asyncio.sleep(60)
        assert not any(each.election.leads() for each in both)
        for each in both:
            each.connection.away = False
        again = await elected(*both)
        assert again.acting
        assert spec(cluster)["holderIdentity"] == again.name
        assert leader.terms + sum(each.terms for each in both if each is not leader) == 2

    simulated(7, story)


def test_a_lost_answer_to_a_renewal_costs_nothing() -> None:
    async def story(cluster: FakeCluster) -> None:
        connection = Connection(cluster, lambda count, _: Fault.LOST if count % 3 == 2 else None)
        first = Candidate(cluster, "a", connection)
        await elected(first)
        await asyncio.sleep(10 * DURATION)
        assert first.election.leads()
        assert first.terms == 1
        await first.leave()
        assert spec(cluster)["holderIdentity"] == ""

    simulated(8, story)


def test_a_lease_that_somebody_deletes_is_made_again() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        await elected(first)
        cluster.delete(LEASES, SYSTEM, names.LEASE)
        await asyncio.sleep(DURATION)
        assert first.election.leads()
        assert first.terms == 1

    simulated(9, story)


def test_a_lease_taken_by_force_ends_the_term_at_the_next_renewal() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        await elected(first)
        await asyncio.sleep(1)
        patch = [{"op": "replace", "path": "/spec/holderIdentity", "value": "somebody"}]
        cluster.json_patch(LEASES, SYSTEM, names.LEASE, patch)
        await asyncio.sleep(3)
        assert not first.acting
        assert not first.election.leads()

    simulated(10, story)


def test_a_term_that_fails_ends_the_candidate_and_releases_the_lease() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        await elected(first)
        first.fails.set()
        with pytest.raises(ValueError, match="the term failed"):
            await first.task
        assert spec(cluster)["holderIdentity"] == ""

    simulated(11, story)


def test_who_leads_no_more_writes_no_more() -> None:
    async def story(cluster: FakeCluster) -> None:
        first = Candidate(cluster, "a")
        fenced = Fenced(first.connection, first.election.leads)
        await elected(first)
        body = {"metadata": {"name": "made"}, "data": {}}
        await fenced.create(CONFIG_MAPS, SYSTEM, body)
        first.election.resign()
        for write in (
            fenced.create(CONFIG_MAPS, SYSTEM, {"metadata": {"name": "other"}}),
            fenced.apply(CONFIG_MAPS, SYSTEM, body),
            fenced.json_patch(CONFIG_MAPS, SYSTEM, "made", []),
            fenced.patch_status(CONFIG_MAPS, SYSTEM, "made", {}),
            fenced.delete(CONFIG_MAPS, SYSTEM, "made"),
        ):
            with pytest.raises(TransientError, match="does not lead"):
                await write
        assert (await fenced.get(CONFIG_MAPS, SYSTEM, "made"))["metadata"]["name"] == "made"
        assert len((await fenced.list(CONFIG_MAPS, SYSTEM))[0]) == 1

    simulated(12, story)


@pytest.mark.parametrize("seed", range(16))
def test_never_do_two_lead(seed: int) -> None:
    """Three candidates on a network on which anything may happen; one leads in the end."""
    rng = random.Random(f"election {seed}")
    rough = [0.3]
    slow = rng.choice((0.001, 0.5, 3.0))

    def fault(_count: int, _write: object) -> Fault | None:
        kinds = (Fault.LOST, Fault.REFUSED, Fault.BUSY, Fault.CONFLICT, Fault.FORBIDDEN)
        return rng.choice(kinds) if rng.random() < rough[0] else None

    async def story(cluster: FakeCluster) -> None:
        running: list[Candidate] = []

        def start(name: str) -> None:
            connection = Connection(
                cluster, fault, latency=lambda: rng.uniform(0.0, slow), arrives=lambda: True
            )
            running.append(Candidate(cluster, name, connection))

        for name in "abc":
            start(name)
        until = now() + 200
        while now() < until:
            await asyncio.sleep(rng.uniform(0.0, 2.0))
            leading = [each.name for each in running if each.election.leads()]
            assert len(leading) < 2, f"{leading} lead at {now()}"
            late = [each for each in running if each.acting and not each.election.leads()]
            await asyncio.sleep(0.01)
            assert not any(each.acting and not each.election.leads() for each in late)
            victim = rng.choice(running)
            what = rng.random()
            if what < 0.05:
                victim.connection.away = not victim.connection.away
            elif what < 0.08:
                victim.die()
                running.remove(victim)
                start(f"{victim.name}{seed}")
            elif what < 0.10:
                running.remove(victim)
                await victim.leave()
                assert not victim.acting
                start(f"{victim.name}+")
        rough[0], slow_now = 0.0, now()
        for each in running:
            each.connection.away = False
        await elected(*running)
        assert now() - slow_now < 10 * DURATION

    simulated(seed, story)


def test_a_candidate_counts_from_what_it_saw_by_its_own_clock() -> None:
    first = seen(None, Record("1", "a"), 100.0)
    assert not may_take(first, "b", 100.0 + DURATION - 0.01)
    assert may_take(first, "b", 100.0 + DURATION)
    assert may_take(first, "a", 100.0)
    assert seen(first, Record("1", "a"), 105.0) is first
    renewed = seen(first, Record("2", "a"), 105.0)
    assert not may_take(renewed, "b", 105.0 + DURATION - 0.01)
    assert may_take(seen(renewed, Record("3", ""), 106.0), "b", 106.0)


def test_a_term_is_greater_than_every_one_before() -> None:
    """Also where somebody deletes the Lease, and its transitions begin anew."""

    def of(created: str, transitions: int) -> int:
        metadata = {"resourceVersion": "1", "creationTimestamp": created}
        return read({"metadata": metadata, "spec": {"leaseTransitions": transitions}}).term

    first = of("2026-05-01T12:00:00Z", 0)
    assert 0 < first < of("2026-05-01T12:00:00Z", 1) < of("2026-05-01T12:00:00Z", 10_000_000)
    assert of("2026-05-01T12:00:00Z", 10_000_000) < of("2026-05-01T12:00:01Z", 0) < 2**63
