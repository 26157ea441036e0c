"""Carries out the steps of a schedule."""

import asyncio
from collections.abc import Callable
from typing import Any

from cloister_operator import names
from cloister_operator.api.backend import NewSession
from cloister_operator.api.session import Phase
from cloister_operator.cluster.resources import ENVIRONMENTS, NAMESPACES, PODS, SESSIONS
from cloister_operator.errors import PermanentError, QuotaError, TransientError
from simulation.expectations import strangers
from simulation.schedule import Step
from simulation.world import SimOperator, SimWorld
from support.fake_api import Fault
from support.fake_operator import Operator
from support.operator_objects import NAMESPACE, environment_body, session_body

JSON = dict[str, Any]
_HELD_FOR = (0.1, 1.0, 5.0, 40.0)
"""Seconds that something is out of order."""
SHORT_LIFE = {"idleTimeout": "40s", "maxLifetime": "100s"}


class Actions:
    """One method for each action of schedule.ACTIONS."""

    def __init__(self, world: SimWorld, change: Callable[[Operator], None] | None) -> None:
        self._world = world
        self._cluster = world.cluster
        self._change = change
        self._mended: list[Callable[[], object]] = []
        self._alive: list[SimOperator] = []
        self._all: list[SimOperator] = []
        """Dead ones too, whose tasks must not go before the end."""
        self._keepers = [asyncio.create_task(self._keep())]
        self._calls: set[asyncio.Task[None]] = set()
        self._given: dict[str, str] = {}
        """By request id, the UID of the session that it got."""

    # --- for who runs the schedule -----------------------------------------------------------

    def do(self, step: Step) -> None:
        """Carry out a step."""
        with self._cluster.acting("somebody"):
            getattr(self, f"_{step.do}")(step.n, step.m)

    def heal(self) -> None:
        """From now on nothing goes wrong."""
        for mend in self._mended:
            mend()
        for each in self._alive:
            each.line.dies_at = None

    def check(self) -> None:
        """Note what ended that must not."""
        for each in self._alive:
            for task in each._tasks:
                if task.done():
                    self._world.invariants.violated(f"an operator ended: {task.exception()!r}")
        for keeper in self._keepers:
            if keeper.done() and not keeper.cancelled() and keeper.exception():
                self._world.invariants.violated(f"cannot start: {keeper.exception()!r}")

    def unanswered(self) -> list[str]:
        """Calls of the Sessions API that have no answer yet."""
        return [f"{len(self._calls)} calls have no answer"] if self._calls else []

    def remembered(self) -> list[str]:
        """What operators should have forgotten."""
        return [each for one in self._alive for each in strangers(self._world, one)]

    def lively(self) -> bool:
        """Whether something changes by itself: sessions that end soon or have ended, and two
        operators that each tell of their own proofs.
        """
        return sum(not each.done() for each in self._keepers) > 1 or any(
            "idleTimeout" in each["spec"].get("lifecycle", {})
            or (each.get("status") or {}).get("phase") in ("Failed", "Terminated")
            for each in self._cluster.peek_all(SESSIONS, NAMESPACE)
        )

    # --- people ------------------------------------------------------------------------------

    def _environment(self, n: int, m: int) -> None:
        name, size, keeps = f"e{n % 2}", m % 4, n // 12 == 2
        spec: JSON = {
            "pool": {
                "size": size,
                "maxSize": size + 3 if n % 6 > 3 else None,
                "maxSessions": 2 if m // 12 == 2 else None,
            },
            "setup": f"echo {m // 4 % 3}",
            "workspace": {"persistent": keeps},
            "lifecycle": {"idleTimeout": "10h", "onIdle": "Suspend" if keeps else "Terminate"},
        }
        if self._cluster.peek(ENVIRONMENTS, NAMESPACE, name):
            self._cluster.patch_spec(ENVIRONMENTS, NAMESPACE, name, spec)
        else:
            self._cluster.create(ENVIRONMENTS, NAMESPACE, environment_body(name, **spec))

    def _remove_environment(self, n: int, m: int) -> None:
        name = f"e{n % 2}"
        if self._cluster.peek(ENVIRONMENTS, NAMESPACE, name):
            self._cluster.delete(ENVIRONMENTS, NAMESPACE, name)

    def _session(self, n: int, m: int) -> None:
        name = f"s{n % 9}"
        spec: JSON = {"lifecycle": SHORT_LIFE} if m % 5 == 0 else {}
        if not self._cluster.peek(SESSIONS, NAMESPACE, name):
            body = session_body(name, f"e{m % 3 // 2}", **spec)
            self._cluster.create(SESSIONS, NAMESPACE, body)

    def _rush(self, n: int, m: int) -> None:
        """Several sessions at once, and perhaps a pool that changes under them."""
        for each in range(2 + n % 3):
            self._session(n + each, 1)
            self._call(n + each, 0)
        if m % 2 and self._cluster.peek(ENVIRONMENTS, NAMESPACE, "e0"):
            self._environment(0, m)

    def _remove_session(self, n: int, m: int) -> None:
        if found := self._nth(SESSIONS, n):
            self._cluster.delete(SESSIONS, NAMESPACE, found["metadata"]["name"])

    def _suspend(self, n: int, m: int) -> None:
        self._set_state(n, "Suspended")

    def _resume(self, n: int, m: int) -> None:
        self._set_state(n, "Running")

    def _set_state(self, n: int, state: str) -> None:
        if found := self._nth(SESSIONS, n):
            name = found["metadata"]["name"]
            self._cluster.patch_spec(SESSIONS, NAMESPACE, name, {"state": state})

    def _flood(self, n: int, m: int) -> None:
        """Many sessions of one Environment; in no schedule that is drawn, for what it costs."""
        for each in range(n):
            body = session_body(f"flood-{each}", "e0")
            self._cluster.create(SESSIONS, NAMESPACE, body)

    def _rest(self, n: int, m: int) -> None:
        """Nothing runs in a session for an hour."""
        if found := self._nth(SESSIONS, n):
            self._world.sandboxes.idle[found["metadata"]["uid"]] = self._world.an_hour

    def _call(self, n: int, m: int) -> None:
        task = asyncio.create_task(self._create(n % 6, f"e{m % 3 // 2}"))
        self._calls.add(task)
        task.add_done_callback(self._called)

    def _called(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and task.exception():
            self._world.invariants.violated(f"a call failed: {task.exception()!r}")

    async def _create(self, number: int, environment: str) -> None:
        """Sessions.Create, repeated under its request id as the client library does."""
        request = f"{environment}-{number}"
        new = NewSession(NAMESPACE, environment, "", request, "worker")
        while True:
            serving = [each for each in self._alive if each.serves]
            if not serving:
                await asyncio.sleep(0.5)
                continue
            backend = self._world.sea.rng.choice(serving).backend
            try:
                async with asyncio.timeout(20):
                    made = await backend.create_session(new)
                    uid = made.metadata.uid
                    self._got(request, uid)
                    settled = await backend.wait_settled(*made.key, 10)
                    if settled and settled.status.phase is Phase.RUNNING:
                        self._world.invariants.answered(settled)
                    return
            except (PermanentError, QuotaError):
                return
            except (TransientError, TimeoutError):
                await asyncio.sleep(1)

    def _got(self, request: str, uid: str) -> None:
        before = self._given.get(request)
        present = {each["metadata"]["uid"] for each in self._cluster.peek_all(SESSIONS, NAMESPACE)}
        if before in present and before != uid:
            self._world.invariants.violated(f"request {request} got two sessions")
        self._given[request] = uid

    def _release(self, n: int, m: int) -> None:
        """Sessions.Delete, by a caller who does not mind when it fails."""
        found = self._nth(SESSIONS, n)
        serving = [each for each in self._alive if each.serves]
        if found and serving:
            name = found["metadata"]["name"]
            task = asyncio.create_task(self._delete(serving[m % len(serving)], name))
            self._calls.add(task)
            task.add_done_callback(self._called)

    async def _delete(self, operator: SimOperator, name: str) -> None:
        try:
            async with asyncio.timeout(20):
                await operator.backend.delete_session(NAMESPACE, name)
        except (TransientError, TimeoutError):
            return

    # --- pods and nodes ----------------------------------------------------------------------

    def _nth(self, resource: Any, n: int) -> JSON | None:
        found = self._cluster.peek_all(resource, NAMESPACE)
        return found[n % len(found)] if found else None

    def _fail_pod(self, n: int, m: int) -> None:
        pod = self._nth(PODS, n)
        if pod is None:
            return
        self._world.invariants.harm(pod["metadata"]["uid"])
        ended = {"name": "sandbox", "state": {"terminated": {"exitCode": 137}}}
        if m % 3 == 0:
            status: JSON = {"reason": "Evicted", "message": "the node was low on memory"}
        elif m % 3 == 1:
            ended["state"]["terminated"]["reason"] = "OOMKilled"  # type: ignore[index]
            status = {"containerStatuses": [ended]}
        else:
            status = {"containerStatuses": [ended]}
        self._cluster.set_pod_status(NAMESPACE, pod["metadata"]["name"], phase="Failed", **status)

    def _delete_pod(self, n: int, m: int) -> None:
        if pod := self._nth(PODS, n):
            self._world.invariants.harm(pod["metadata"]["uid"])
            self._cluster.delete(PODS, NAMESPACE, pod["metadata"]["name"])

    def _node_gone(self, n: int, m: int) -> None:
        """Half of the pods, with no farewell."""
        for pod in self._cluster.peek_all(PODS, NAMESPACE)[n % 2 :: 2]:
            self._world.invariants.harm(pod["metadata"]["uid"])
            self._cluster.vanish(PODS, NAMESPACE, pod["metadata"]["name"])

    def _for(self, m: int, mend: Callable[[], object]) -> None:
        """Mend after a while, or when everything is mended."""
        seconds = _HELD_FOR[m % len(_HELD_FOR)]
        asyncio.get_running_loop().call_later(seconds, mend)
        self._mended.append(mend)

    def _hold_starts(self, n: int, m: int) -> None:
        def mend() -> None:
            self._cluster.starts_pods = True
            self._cluster.act()

        self._cluster.starts_pods = False
        self._for(m, mend)

    def _hold_ends(self, n: int, m: int) -> None:
        def mend() -> None:
            self._cluster.ends_pods = True
            self._cluster.act()

        self._cluster.ends_pods = False
        self._for(m, mend)

    def _silence(self, n: int, m: int) -> None:
        """No exec server answers."""
        self._world.sandboxes.answering.clear()
        self._for(m, self._world.sandboxes.answering.set)

    def _open_network(self, n: int, m: int) -> None:
        """Sandboxes reach what they must not: all are replaced, and go when the others come."""
        self._world.invariants.refills += 1
        self._world.sandboxes.reachable.append("10.96.0.1:443")
        self._for(m, self._world.sandboxes.reachable.clear)

    # --- the API server ----------------------------------------------------------------------

    def _faults(self, n: int, m: int) -> None:
        def mend() -> None:
            self._world.sea.rough = 0.0

        self._world.sea.rough = (0.1, 0.3, 0.6)[n % 3]
        self._for(m, mend)

    def _cut_watches(self, n: int, m: int) -> None:
        for each in self._alive:
            each.line.cut_watches()

    def _hold_watches(self, n: int, m: int) -> None:
        for each in self._alive:
            each.line.hold_watches(True)
            self._for(m, lambda line=each.line: line.hold_watches(False))  # type: ignore[misc]

    def _forget_history(self, n: int, m: int) -> None:
        """Watches that were cut meet a 410."""
        for each in self._alive:
            each.line.cut_watches()
        self._cluster.forget_history()

    def _away(self, n: int, m: int) -> None:
        for each in self._alive:
            each.line.away = True
            each.line.cut_watches()

            def mend(line: Any = each.line) -> None:
                line.away = False

            self._for(m, mend)

    def _hold_collector(self, n: int, m: int) -> None:
        def mend() -> None:
            self._cluster.collects = True
            self._cluster.act()

        self._cluster.collects = False
        self._for(m, mend)

    def _close_namespace(self, n: int, m: int) -> None:
        label = f"/metadata/labels/{names.SANDBOXES_LABEL.replace('/', '~1')}"

        def set_to(value: str) -> None:
            patch = [{"op": "replace", "path": label, "value": value}]
            self._cluster.json_patch(NAMESPACES, "", NAMESPACE, patch)

        set_to("disabled")
        self._for(m, lambda: set_to("enabled"))

    # --- operators ---------------------------------------------------------------------------

    async def _keep(self) -> None:
        """What a Deployment does: one operator after another."""
        while True:
            made = SimOperator(self._world, self._change)
            self._alive.append(made)
            self._all.append(made)
            try:
                await made.connection.killed.wait()
            finally:
                made.die()
                self._alive.remove(made)
            self._world.deaths += 1
            self._world.invariants.refills += 1
            await asyncio.sleep(self._world.sea.rng.choice((0.0, 0.5, 10.0)))

    def _kill(self, n: int, m: int) -> None:
        if self._alive:
            self._alive[n % len(self._alive)].die()

    def _kill_at(self, n: int, m: int) -> None:
        if self._alive:
            fault = Fault.KILLED_BEFORE if m % 2 else Fault.KILLED_AFTER
            self._alive[n % len(self._alive)].line.dies_at = (m // 2, fault)

    def _second(self, n: int, m: int) -> None:
        """Another one that believes it leads, for a while or for good."""
        if len(self._keepers) > 1:
            return
        self._world.invariants.refills += 1
        self._world.doubled = True
        keeper = asyncio.create_task(self._keep())
        self._keepers.append(keeper)
        if n % 2:
            self._for(m, keeper.cancel)
