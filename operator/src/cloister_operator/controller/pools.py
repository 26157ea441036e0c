"""Keeps pools at the size that their Environments, the demand and the platform make of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial

from .. import names
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..cache import Key
from ..errors import OperatorError, PermanentError
from ..plan import trials
from ..plan.demand import Bounds, Demand, Target, bounds, next_target, shrinks_at
from ..plan.failure import Failure
from ..plan.pool import PoolPlan, Wanted, plan_pool
from ..plan.refill import Refill, slow_start
from ..plan.trials import Trials
from ..recipe import Recipe
from . import pods
from .context import Context

AT_ONCE = 16
"""Pods that are being made at a time for all pools together: claims want the API server too."""


class Pools:
    """Pools of one process. A restart forgets how fast pods were claimed, and starts from the pools
    that are there.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._refill = Refill(context.settings.max_refill_rate)
        self._places = asyncio.Semaphore(AT_ONCE)
        self._demand: dict[Key, Demand] = {}
        self._targets: dict[Key, Target] = {}
        self._trials: dict[Key, Trials] = {}
        context.pods.listen(self._pod_changed)
        context.environments.listen(self._environment_changed)

    def trials(self, key: Key) -> Trials:
        """Failures of an Environment's new pods."""
        return self._trials.get(key, Trials())

    def forget(self, key: Key) -> None:
        """The Environment is gone."""
        self._refill.take(key, 0, _seconds())
        failed = self._context.failed_starts
        for known in (self._demand, self._targets, self._trials, failed):
            known.pop(key, None)

    def rests(self, key: Key) -> None:
        """The Environment has no recipe: no pod is tried, and none would ever end the count of
        those that failed.
        """
        self._context.failed_starts.pop(key, None)

    def look(self, environment: EnvironmentObject, recipe: Recipe) -> tuple[Wanted, PoolPlan]:
        """What is wanted of a pool, and what is to be done for it."""
        context, key, now = self._context, environment.key, self._context.clock()
        present = context.pods.group(("environment", *key))
        found = trials.watch(self.trials(key), present, context.failures, recipe.hash, now)
        self._trials[key] = found
        limits = self._bounds(environment, recipe, present)
        mine = [each for each in present if each.recipe == recipe.hash and _is_free(each)]
        demand = self._demand.setdefault(key, Demand())
        needed = demand.needed(now) if environment.spec.pool.max_size is not None else 0
        target = next_target(self._targets.get(key), needed, limits, len(mine), now)
        self._targets[key] = target
        # Where no pod is to be warm, none is tried again, and none would ever end the count.
        context.failed_starts[key] = found.failures if target.size else 0
        wanted = Wanted(recipe.hash, target.size)
        lost = context.flights.count(pods.pool_of(environment, recipe), now)
        others = {each.uid for each in present} - context.made
        plan = plan_pool(present, context.failures, wanted, now, found, lost, others)
        return wanted, plan

    def _bounds(
        self, environment: EnvironmentObject, recipe: Recipe, present: Sequence[PodView]
    ) -> Bounds:
        context, pool = self._context, environment.spec.pool
        places = None
        if pool.max_sessions is not None:
            places = max(0, pool.max_sessions - context.places.taken(environment.key))
        limits = bounds(pool.size, pool.max_size, context.settings.max_pool_size, places)
        mine = [each for each in present if each.recipe == recipe.hash and _is_free(each)]
        if any(trials.is_held(each) for each in mine):
            # Where no node takes one more, a larger pool only waits in more pods.
            return Bounds(limits.floor, max(limits.floor, min(limits.ceiling, len(mine))))
        return limits

    async def carry_out(
        self, environment: EnvironmentObject, recipe: Recipe, plan: PoolPlan
    ) -> tuple[list[OperatorError], float | None]:
        """Carry out a plan; what failed, after everything was tried, and when to look again."""
        context, key = self._context, environment.key
        now = context.clock()
        granted = self._refill.take(key, plan.create, _seconds())
        again = context.flights.count(pods.pool_of(environment, recipe), now)
        results = await asyncio.gather(
            self._make(environment, recipe, granted + again),
            *(_problem(partial(pods.delete_unclaimed, context, pod)) for pod in plan.delete),
        )
        problems = [each for result in results for each in result]
        refused = next((each for each in results[0] if isinstance(each, PermanentError)), None)
        if refused:
            why = Failure(refused.reason, refused.sentence)
            self._trials[key] = trials.refused(self.trials(key), recipe.hash, why, now)
        delays = [(each - context.clock()).total_seconds() for each in self._times(plan, key)]
        if granted < plan.create:
            delays.append(self._refill.wait(key, _seconds()))
        return problems, max(0.1, min(delays)) if delays else None

    def _times(self, plan: PoolPlan, key: Key) -> list[datetime]:
        environment = self._context.environments.get(*key)
        found = [plan.look_again] if plan.look_again else []
        if environment and key in self._targets:
            pool = environment.spec.pool
            limits = bounds(pool.size, pool.max_size, self._context.settings.max_pool_size, None)
            shrinks = shrinks_at(self._targets[key], limits)
            found += [shrinks] if shrinks else []
        return found

    async def _make(
        self, environment: EnvironmentObject, recipe: Recipe, count: int
    ) -> list[OperatorError]:
        """Few at first, and no more once one could not be made."""
        for batch in slow_start(count, AT_ONCE):
            results = await asyncio.gather(
                *(_problem(partial(self._make_one, environment, recipe)) for _ in range(batch))
            )
            problems = [each for result in results for each in result]
            if problems:
                return problems
        return []

    async def _make_one(self, environment: EnvironmentObject, recipe: Recipe) -> None:
        async with self._places:
            await pods.create(self._context, environment, recipe)

    def _environment_changed(
        self, before: EnvironmentObject | None, after: EnvironmentObject | None
    ) -> None:
        """A process that does not lead hears of pods as well, and reconciles nothing at the end."""
        if before and after is None:
            self.forget(before.key)

    def _pod_changed(self, before: PodView | None, after: PodView | None) -> None:
        """Claims, and how long a pod takes to be warm."""
        if after is None:
            return
        key, now = (after.namespace, after.environment), self._context.clock()
        if self._context.environments.get(*key) is None:
            # A label may say anything, and pods outlive their Environment: nobody would forget it.
            return
        demand = self._demand.setdefault(key, Demand())
        if before is None:
            # Made for a session; one that the first list told of says nothing about now.
            if self._context.synced.is_set() and after.state == names.STATE_CLAIMED:
                demand.claimed(now)
            return
        was, now_is = before.state, after.state
        if was == names.STATE_STARTING and now_is == names.STATE_WARM:
            demand.warmed(now - after.created)
        elif was == names.STATE_WARM and now_is == names.STATE_CLAIMED:
            demand.claimed(now)


def _is_free(pod: PodView) -> bool:
    return pod.state != names.STATE_CLAIMED and pod.alive


async def _problem(work: Callable[[], Awaitable[object]]) -> list[OperatorError]:
    try:
        await work()
    except OperatorError as error:
        return [error]
    return []


def _seconds() -> float:
    """The event loop's clock."""
    return asyncio.get_running_loop().time()
