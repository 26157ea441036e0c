"""How many pods a pool makes and deletes."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from .. import names
from ..api import conditions
from ..api.pod import PodView
from .failure import Failure
from .trials import STUCK_AFTER, Trials, is_held, is_starting, problem_of

MAX_BATCH = 32
"""Pods of one plan: pools take turns."""
FAILED_POD_KEPT = timedelta(seconds=30)
"""How long a pod that failed is kept before another is tried in its place."""
OPEN_POD_KEPT = timedelta(minutes=5)
"""The same of one that found the network open. It goes on trying, and is warm once that is closed:
another one would find what it found, and a cluster without a network plugin would make and unmake
its pools for as long as nobody looks. But only its own node may be to blame.
"""
SPARED = timedelta(seconds=30)
"""A pod that another process has made is this old before it goes as one too many. That process may
still believe that it leads, know of claims that this one was not told of, and make the next one at
once: each would undo what the other does, as fast as they can write.
"""


@dataclass(frozen=True)
class Wanted:
    """What the Environment asks of its pool."""

    recipe: str
    size: int

    @property
    def surge(self) -> int:
        """Pods of a new recipe that may be under way beside the old ones."""
        return max(1, math.ceil(self.size / 4))


@dataclass(frozen=True)
class PoolPlan:
    """What to do now, and when to look again (None: at the next event)."""

    create: int
    delete: tuple[PodView, ...]
    look_again: datetime | None


def plan_pool(
    pods: Sequence[PodView],
    failures: Mapping[str, Failure],
    wanted: Wanted,
    now: datetime,
    trials: Trials | None = None,
    in_flight: int = 0,
    others: Collection[str] = (),
) -> PoolPlan:
    """Move a pool towards its wanted size.

    `pods` are the Environment's, `failures` those of pods by UID, `trials` the failures of the
    recipe so far, `in_flight` pods that may have been made and were not seen yet, `others` the UIDs
    of pods that another process made. Claimed pods are never touched. Warm pods of an old recipe
    stay until the new recipe has as many, so that a change that fails can be taken back at once; a
    pod that failed holds its place for a while, so that a setup script that always fails does not
    burn through pods.
    """
    free = [each for each in pods if each.state != names.STATE_CLAIMED and not each.deleting]
    problems = {each.uid for each in free if problem_of(each, failures, now)}
    failed = [each for each in free if each.uid in problems]
    due = {each.uid: each.created + _kept_for(failures.get(each.uid)) for each in failed}
    delete = [each for each in failed if due[each.uid] <= now]
    gone = {each.uid for each in delete}
    held = [each for each in failed if each.uid not in gone and each.recipe == wanted.recipe]
    well = [each for each in free if each.uid not in problems]
    current = [each for each in well if each.recipe == wanted.recipe]
    old = [each for each in free if each.recipe != wanted.recipe and each.uid not in gone]
    warm = sum(1 for each in current if each.state == names.STATE_WARM)

    # What has got least far goes first.
    least = sorted(current, key=lambda pod: (pod.state == names.STATE_WARM, pod.created))
    surplus = least[: max(0, len(current) - wanted.size)]
    spared = {
        pod.uid: until
        for pod in surplus
        if pod.uid in others and now < (until := pod.created + SPARED)
    }
    delete += [pod for pod in surplus if pod.uid not in spared]
    kept = _kept(old, problems, wanted.size - warm)
    delete += [pod for pod in old if pod not in kept]

    there = len(current) + len(held) + in_flight
    create = min(wanted.size - there, wanted.size + wanted.surge - there - len(kept))
    # Pods on their way out need their nodes' room as well. A few, of a node that is lost for one,
    # may stay so for ever and hold up nothing; a pool that is made and unmade over and over waits.
    leaving = sum(1 for each in pods if each.deleting and each.state != names.STATE_CLAIMED)
    create = min(create, 2 * wanted.size + wanted.surge - there - len(kept) - leaving)
    create = max(0, min(create, MAX_BATCH))
    waits = [when for uid, when in due.items() if uid not in gone]
    waits += spared.values()
    waits += [
        each.created + STUCK_AFTER for each in well if is_starting(each) and not is_held(each)
    ]
    create, retry = _tried(create, current, trials, now)
    return PoolPlan(create, tuple(delete), min([*waits, *retry], default=None))


def _kept_for(failure: Failure | None) -> timedelta:
    found_open = failure is not None and failure.reason == conditions.NETWORK_NOT_ENFORCED
    return OPEN_POD_KEPT if found_open else FAILED_POD_KEPT


def _kept(old: Sequence[PodView], problems: Collection[str], count: int) -> list[PodView]:
    """Of the pods of older recipes, those that stay: the newest, as nobody goes back further."""
    warm = [pod for pod in old if pod.state == names.STATE_WARM and pod.uid not in problems]
    newest = sorted(warm, key=lambda pod: (pod.created, pod.name), reverse=True)
    return newest[: max(0, count)]


def _tried(
    create: int, current: Sequence[PodView], trials: Trials | None, now: datetime
) -> tuple[int, list[datetime]]:
    """How many are made while a recipe's pods fail: one, when it is time for one."""
    if not create or trials is None or trials.retry_at is None:
        return create, []
    if now < trials.retry_at:
        return 0, [trials.retry_at]
    starting = any(each.state == names.STATE_STARTING for each in current)
    return (0 if starting else 1), []
