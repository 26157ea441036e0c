"""What an Environment's status says of its pool and its network."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from .. import names
from ..api import conditions
from ..api.conditions import Finding
from ..api.environment import PoolCounts
from ..api.pod import PodView
from .failure import Failure, Proof
from .pool import Wanted
from .trials import Trials, problem_of


def counts(pods: Sequence[PodView], failures: Mapping[str, Failure], wanted: int = 0) -> PoolCounts:
    """Pods by what they do, and how many are wanted."""
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
    return PoolCounts(**by_state, wanted=wanted)


def findings(
    pods: Sequence[PodView],
    failures: Mapping[str, Failure],
    wanted: Wanted,
    proof: Proof | None,
    now: datetime,
    trials: Trials | None = None,
) -> list[Finding]:
    """The conditions of an Environment whose spec is in order."""
    network = _network(proof)
    pool = _pool(pods, failures, wanted, now, trials)
    if network.status == "False":
        ready = Finding(conditions.READY, "False", network.reason, network.message)
    elif pool.status == "True" or any(_is_warm(pod, failures) for pod in pods):
        ready = Finding(conditions.READY, "True", conditions.AVAILABLE, "sessions can be claimed")
    else:
        ready = Finding(conditions.READY, "False", pool.reason, pool.message)
    return [ready, pool, network]


def refused(why: Failure, proofs: Iterable[Proof]) -> list[Finding]:
    """The conditions of an Environment that no pod is made for. `proofs`: of the networks that the
    pods of its last good version are in; a network that was seen open stays one.
    """
    seen_open = next((each for each in proofs if not each.enforced), None)
    unknown = Finding(conditions.NETWORK_ENFORCED, "Unknown", why.reason, why.message)
    return [
        Finding(conditions.READY, "False", why.reason, why.message),
        Finding(conditions.POOL_READY, "False", why.reason, why.message),
        _network(seen_open) if seen_open else unknown,
    ]


def _is_warm(pod: PodView, failures: Mapping[str, Failure]) -> bool:
    return pod.state == names.STATE_WARM and pod.alive and pod.uid not in failures


def _pool(
    pods: Sequence[PodView],
    failures: Mapping[str, Failure],
    wanted: Wanted,
    now: datetime,
    trials: Trials | None,
) -> Finding:
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
        why = problem_of(pod, failures, now)
        if why is None and pod.trouble:
            why = Failure(*pod.trouble)
        if why:
            return Finding(conditions.POOL_READY, "False", why.reason, why.message)
    if trials and trials.why and trials.recipe == wanted.recipe:
        # The pods that failed are gone, and the next one is not made yet, or starting.
        return Finding(conditions.POOL_READY, "False", trials.why.reason, trials.why.message)
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
