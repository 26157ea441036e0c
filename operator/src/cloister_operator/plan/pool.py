"""How many pods a pool makes and deletes, and what its Environment's status says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from .. import names
from ..api import conditions
from ..api.conditions import Finding
from ..api.environment import PoolCounts
from ..api.pod import PodView

MAX_BATCH = 20
"""Pods made at once; the next batch follows when their answers are in."""
FAILED_POD_KEPT = timedelta(seconds=30)
"""How long a pod that failed is kept before another is tried in its place."""


@dataclass(frozen=True)
class Failure:
    """Why a pod cannot become warm: a condition's reason, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Wanted:
    """What the Environment asks of its pool."""

    recipe: str
    size: int


@dataclass(frozen=True)
class PoolPlan:
    """What to do now, and when to look again (None: at the next event)."""

    create: int
    delete: tuple[PodView, ...]
    look_again: datetime | None


def plan_pool(
    pods: Sequence[PodView], failures: Mapping[str, Failure], wanted: Wanted, now: datetime
) -> PoolPlan:
    """Move a pool towards its wanted size.

    `pods` are the Environment's, `failures` those of pods by UID. Claimed pods are never touched.
    Warm pods of an old recipe stay until the new recipe has as many, so that a change never
    empties the pool; a pod that failed holds its place for a while, so that a setup script that
    always fails does not burn through pods.
    """
    free = [each for each in pods if each.state != names.STATE_CLAIMED and not each.deleting]
    ended = [each for each in free if each.end]
    broken = [each for each in free if each.uid in failures and not each.end]
    current = [each for each in free if each.recipe == wanted.recipe and each.alive]
    due = {each.uid: each.created + FAILED_POD_KEPT for each in [*ended, *broken]}
    delete = [each for each in [*ended, *broken] if due[each.uid] <= now]
    gone = {each.uid for each in delete}
    held = [each for each in ended if each.recipe == wanted.recipe and each.uid not in gone]
    population = [each for each in current if each.uid not in gone]
    create = max(0, wanted.size - len(population) - len(held))

    surplus = len(population) - wanted.size
    if surplus > 0:
        # What has got least far goes first.
        least = sorted(population, key=lambda pod: (pod.state == names.STATE_WARM, pod.created))
        delete += least[:surplus]
    # A warm pod that broke since, by its network for one, takes nobody's place.
    warm = sum(1 for pod in population if _is_warm(pod, failures))
    old = [pod for pod in free if pod.recipe != wanted.recipe and pod.uid not in gone]
    if warm >= wanted.size:
        delete += old
    else:
        delete += [pod for pod in old if pod.state != names.STATE_WARM]
    waits = [when for uid, when in due.items() if uid not in gone]
    return PoolPlan(min(create, MAX_BATCH), tuple(delete), min(waits, default=None))


def counts(pods: Sequence[PodView], failures: Mapping[str, Failure]) -> PoolCounts:
    """Pods by what they do."""
    by_state = {"ready": 0, "starting": 0, "claimed": 0, "failed": 0}
    for pod in pods:
        if pod.deleting:
            continue
        if pod.state == names.STATE_CLAIMED:
            by_state["claimed"] += 0 if pod.end else 1
        elif pod.end or pod.uid in failures:
            by_state["failed"] += 1
        elif pod.state == names.STATE_WARM:
            by_state["ready"] += 1
        else:
            by_state["starting"] += 1
    return PoolCounts(**by_state)


@dataclass(frozen=True)
class Proof:
    """What the last sandbox found that tried to reach the cluster."""

    enforced: bool
    message: str
    at: datetime


def findings(
    pods: Sequence[PodView],
    failures: Mapping[str, Failure],
    wanted: Wanted,
    proof: Proof | None,
) -> list[Finding]:
    """The conditions of an Environment whose spec is in order."""
    network = _network(proof)
    pool = _pool(pods, failures, wanted)
    if network.status == "False":
        ready = Finding(conditions.READY, "False", network.reason, network.message)
    elif pool.status == "True" or _has_warm(pods, failures):
        ready = Finding(conditions.READY, "True", conditions.AVAILABLE, "sessions can be claimed")
    else:
        ready = Finding(conditions.READY, "False", pool.reason, pool.message)
    return [ready, pool, network]


def _is_warm(pod: PodView, failures: Mapping[str, Failure]) -> bool:
    return pod.state == names.STATE_WARM and pod.alive and pod.uid not in failures


def _has_warm(pods: Sequence[PodView], failures: Mapping[str, Failure]) -> bool:
    return any(_is_warm(pod, failures) for pod in pods)


def _pool(pods: Sequence[PodView], failures: Mapping[str, Failure], wanted: Wanted) -> Finding:
    mine = [
        pod
        for pod in pods
        if pod.recipe == wanted.recipe and pod.state != names.STATE_CLAIMED and not pod.deleting
    ]
    warm = sum(1 for pod in mine if _is_warm(pod, failures))
    if warm >= wanted.size:
        message = f"{warm} of {wanted.size} pods are warm"
        return Finding(conditions.POOL_READY, "True", conditions.POOL_FILLED, message)
    for pod in mine:
        if pod.uid in failures:
            failure = failures[pod.uid]
            return Finding(conditions.POOL_READY, "False", failure.reason, failure.message)
        problem = pod.end or pod.trouble
        if problem:
            return Finding(conditions.POOL_READY, "False", *problem)
    message = f"{warm} of {wanted.size} pods are warm, the others are starting"
    return Finding(conditions.POOL_READY, "False", conditions.POOL_FILLING, message)


def _network(proof: Proof | None) -> Finding:
    if proof is None:
        message = "no sandbox has been probed yet; each is, before it may be used"
        return Finding(conditions.NETWORK_ENFORCED, "Unknown", conditions.NOT_PROVEN, message)
    if proof.enforced:
        return Finding(conditions.NETWORK_ENFORCED, "True", conditions.PROVEN, proof.message)
    return Finding(
        conditions.NETWORK_ENFORCED, "False", conditions.NETWORK_NOT_ENFORCED, proof.message
    )
