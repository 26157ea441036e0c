"""The operator's controller on a FakeCluster, with exec servers that exist in name only."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from cloister_operator import names
from cloister_operator.cluster.resources import ENVIRONMENTS, PODS, SECRETS, SESSIONS
from cloister_operator.controller.context import Context, Dialer
from cloister_operator.controller.controller import Controller
from cloister_operator.controller.events import Recorder
from cloister_operator.identity import Authority
from cloister_operator.settings import Settings
from support import invariants
from support.eventually import until
from support.fake_api import Connection, FakeCluster
from support.fake_sandboxes import FakeSandboxes
from support.operator_objects import NAMESPACE, NOW, environment_body, session_body, settings

JSON = dict[str, Any]
OPEN_NAMESPACE = {
    names.SANDBOXES_LABEL: "enabled",
    "pod-security.kubernetes.io/enforce": "restricted",
}


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class World:
    """A cluster, its exec servers, a clock, and any number of operators."""

    def __init__(self, authority: Authority, **changes: Any) -> None:
        self.clock = self._clock()
        self.cluster = self._cluster()
        self.sandboxes = FakeSandboxes(self.cluster)
        self.authority = authority
        self.settings: Settings = settings(**changes)
        self.operators: list[Operator] = []

    def _clock(self) -> Clock:
        return Clock()

    def _cluster(self) -> FakeCluster:
        return FakeCluster(self.clock, namespaces={NAMESPACE: OPEN_NAMESPACE}, kubelet=True)

    def start(self, connection: Connection | None = None) -> "Operator":
        """Start an operator."""
        made = Operator(self, connection or Connection(self.cluster))
        self.operators.append(made)
        return made

    async def close(self) -> None:
        """Kill every operator."""
        for each in self.operators:
            await each.kill()

    # --- what people do ----------------------------------------------------------------------

    def apply_environment(self, name: str = "py", **spec: Any) -> str:
        """Make an Environment; the answer is its UID."""
        body = environment_body(name, **spec)
        uid: str = self.cluster.create(ENVIRONMENTS, NAMESPACE, body)["metadata"]["uid"]
        return uid

    def apply_session(self, name: str = "s1", environment: str = "py", **spec: Any) -> str:
        """Make a Session; the answer is its UID."""
        body = session_body(name, environment, **spec)
        uid: str = self.cluster.create(SESSIONS, NAMESPACE, body)["metadata"]["uid"]
        return uid

    # --- what can be seen --------------------------------------------------------------------

    def environment(self, name: str = "py") -> JSON:
        """An Environment."""
        return self.cluster.get(ENVIRONMENTS, NAMESPACE, name)

    def session(self, name: str = "s1") -> JSON:
        """A Session."""
        return self.cluster.get(SESSIONS, NAMESPACE, name)

    def phase(self, name: str = "s1") -> str:
        """A Session's phase, or an empty string."""
        found = self.cluster.peek(SESSIONS, NAMESPACE, name) or {}
        return str((found.get("status") or {}).get("phase", ""))

    def condition(self, obj: JSON, kind: str = "Ready") -> tuple[str, str]:
        """A condition's status and reason, or empty strings."""
        for each in (obj.get("status") or {}).get("conditions") or []:
            if each["type"] == kind:
                return each["status"], each["reason"]
        return "", ""

    def pods(self, **labels: str) -> list[JSON]:
        """Pods that are not being deleted, with these labels (state, session, recipe); by name,
        and not to be changed.
        """
        wanted = {f"{names.GROUP}/{key}": value for key, value in labels.items()}.items()
        found = [
            each
            for each in self.cluster.peek_all(PODS, NAMESPACE)
            if wanted <= each["metadata"]["labels"].items()
            and "deletionTimestamp" not in each["metadata"]
        ]
        return sorted(found, key=lambda each: str(each["metadata"]["name"]))

    def secrets(self) -> set[str]:
        """Names of all Secrets."""
        return {each["metadata"]["name"] for each in self.cluster.peek_all(SECRETS, NAMESPACE)}

    def pool_is(self, size: int, environment: str = "py") -> bool:
        """Whether the pool of an Environment is as its status says: this many warm pods."""
        found = self.cluster.peek(ENVIRONMENTS, NAMESPACE, environment) or {}
        status = found.get("status") or {}
        mine = self.pods(environment=environment)
        free = [x for x in mine if x["metadata"]["labels"][names.STATE_LABEL] != "claimed"]
        warm = [x for x in free if x["metadata"]["labels"][names.STATE_LABEL] == "warm"]
        recipes = {x["metadata"]["labels"][names.RECIPE_LABEL] for x in free}
        return (
            len(free) == len(warm) == size
            and recipes <= {status.get("recipeHash")}
            and status.get("pool", {}).get("ready") == size
            and status["pool"]["starting"] == 0
        )

    def served(self, name: str) -> bool:
        """Whether a Session runs, in its own pod and no other."""
        session = self.session(name)
        uid, status = session["metadata"]["uid"], session.get("status") or {}
        mine = self.pods(session=uid)
        return (
            status.get("phase") == "Running"
            and [each["metadata"]["uid"] for each in mine] == [status["podUID"]]
            and self.sandboxes.claimed.get(status["podUID"]) == uid
        )

    def problems(self) -> Iterator[str]:
        """What must never be, whatever went wrong before."""
        return invariants.problems(self.cluster, self.sandboxes.claimed, NAMESPACE)

    def leaks(self) -> set[str]:
        """Secrets that nothing present needs."""
        return invariants.leaks(self.cluster, NAMESPACE)


class Operator:
    """One running controller, with the events that kopf would hand it."""

    def __init__(self, world: World, connection: Connection, dialer: Dialer | None = None) -> None:
        """`dialer`: its way to the world's exec servers, if not a straight one."""
        self.world = world
        self.connection = connection
        self.context = Context(
            connection, dialer or world.sandboxes, world.authority, world.settings, world.clock
        )
        self.context.probe_targets = ["10.96.0.1:443", "10.0.0.9:8080"]
        self.controller = Controller(self.context, Recorder(connection, "operator-0", world.clock))
        self._tasks = [asyncio.create_task(self._run())]

    async def _run(self) -> None:
        cluster = self.world.cluster
        begin = cluster.version
        async with asyncio.TaskGroup() as group:
            group.create_task(self.controller.run())
            await self.context.synced.wait()
            for resource in (ENVIRONMENTS, SESSIONS):
                group.create_task(self._observe(resource, begin))

    async def _observe(self, resource: Any, begin: int) -> None:
        async for kind, obj in self.world.cluster.watch(resource, "", "", begin):
            if not self.connection.away and not self.connection.killed.is_set():
                self.controller.observe(resource.plural, kind, obj)

    @property
    def quiet(self) -> bool:
        """Nothing is being done, and nothing is to be done at once."""
        queue = self.context.queue
        return not len(queue) and not queue._running and not self.controller._warmer._tasks

    def look(self) -> None:
        """Look at everything again, as the resync does."""
        for key in list(self.context.environments):
            self.context.queue.add(("environment", *key))
        for key in list(self.context.sessions):
            self.context.queue.add(("session", *key))

    async def advance(self, delta: timedelta) -> None:
        """Let time pass, and do what is due by then."""
        self.world.clock.now += delta
        self.look()
        await self.settle()

    async def settle(self) -> None:
        """Wait until there is nothing to do for a good number of the loop's steps."""
        steps = 0

        def calm() -> bool:
            nonlocal steps
            self._check()
            steps = steps + 1 if self.quiet else 0
            return steps > 100

        await until(calm)

    async def until(self, what: Callable[[], object]) -> None:
        """Wait for what this operator brings about."""

        def look() -> object:
            self._check()
            return what()

        await until(look, pause=0.001)

    def _check(self) -> None:
        """An operator that ended by an exception must end the test."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def kill(self) -> None:
        """End it without any of its clean-up reaching the cluster."""
        self.connection.killed.set()
        for task in [*self._tasks, *self.controller._tasks]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks.clear()
