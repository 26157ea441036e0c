"""Two operators, of which the one that leads is killed and does not come back."""

from datetime import timedelta
from typing import Any

import pytest

from cloister_api.sessions.v1 import sessions_pb2
from cloister_operator import names
from cloister_operator.api.conditions import parse_time
from cloister_operator.cluster.resources import ENVIRONMENTS, LEASES, SESSIONS
from faults_operator.rig import Rig, Run
from support.fake_api import Change

JSON = dict[str, Any]
HANDED_OVER = timedelta(seconds=15)
"""At most between the last renewal of who led and the first moment of who leads."""


class Leases:
    """The specs that the operators' Lease has had, by holder: the first and the last of each."""

    def __init__(self, run: Run) -> None:
        self._system = run.system
        self.first: dict[str, JSON] = {}
        self.last: dict[str, JSON] = {}
        run.rig.history.listeners.append(self._look)

    def _look(self, change: Change) -> None:
        if change.resource is LEASES and change.namespace == self._system and change.after:
            spec: JSON = change.after["spec"]
            self.first.setdefault(spec["holderIdentity"], spec)
            self.last[spec["holderIdentity"]] = spec


def wanted(run: Run, request_id: str) -> sessions_pb2.CreateSessionRequest:
    return sessions_pb2.CreateSessionRequest(
        namespace=run.namespace, environment="py", request_id=request_id
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
async def test_the_other_one_leads_within_15_seconds(rig: Rig, answered: bool) -> None:
    """Killed before or after its pod was claimed; the times are those that the Lease tells."""
    run = Run(rig)
    leases = Leases(run)
    run.replaced = False
    async with run.running():
        await run.until("a leader", lambda: "operator-0" in leases.first)
        async with run.standby() as (standby, port):
            await run.create(ENVIRONMENTS, names.ENVIRONMENT_KIND, "py", {"pool": {"size": 1}})
            await run.until("a full pool", lambda: run.pool_is(1, 0))
            # Through the one that does not lead: it knows who does.
            one = await run.claim(wanted(run, "r1"), port)
            pod = await run.until("session one", lambda: run.served(one.name))
            await run.until("a full pool again", lambda: run.pool_is(1, 1))

            # The call makes the Session, and claims its pod.
            run.kill_at(2, answered=answered)
            two = await run.claim(wanted(run, "r2"), port)
            assert run.struck is not None
            assert run.deaths == 1
            await run.until("session two", lambda: run.served(two.name))
            assert (await run.claim(wanted(run, "r2"), port)).name == two.name
            await run.until("a full pool under the other", lambda: run.pool_is(1, 2))

            kept = run.served(one.name)
            assert kept is not None, "the session of before has other pods, or none"
            assert kept["metadata"]["uid"] == pod["metadata"]["uid"]
            made = [
                each["metadata"]["name"] for each in rig.history.peek_all(SESSIONS, run.namespace)
            ]
            assert sorted(made) == sorted([one.name, two.name])
            before, after = leases.last["operator-0"], leases.first["operator-1"]
            assert after["leaseTransitions"] == before["leaseTransitions"] + 1
            took = parse_time(after["acquireTime"]) - parse_time(before["renewTime"])
            assert timedelta(0) < took <= HANDED_OVER
            assert not standby.ended.is_set()
            assert list(leases.first) == ["operator-0", "operator-1"]
            assert run.problems() == []
