"""Whether pods of a recipe come up at all: those that do not are tried again ever more seldom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from .. import names
from ..api import conditions
from ..api.pod import PodView
from .failure import Failure

STUCK_AFTER = timedelta(minutes=5)
"""A pod whose container does not run by then will not run: another one may, on another node."""
FIRST_RETRY = timedelta(seconds=10)
"""After the first failure; doubled from one failure to the next."""
LONGEST_RETRY = timedelta(minutes=5)
_UNPLACEABLE = (conditions.UNSCHEDULABLE, conditions.VOLUME_NOT_BOUND)


@dataclass(frozen=True)
class Trials:
    """Failures one after the other of a recipe's new pods; kept by one process."""

    recipe: str = ""
    failures: int = 0
    last: datetime | None = None
    why: Failure | None = None
    """Of the last one."""

    @property
    def retry_at(self) -> datetime | None:
        """Not before this another pod is made."""
        if self.last is None:
            return None
        wait: timedelta = FIRST_RETRY * 2 ** min(self.failures - 1, 10)
        return self.last + min(LONGEST_RETRY, wait)


def is_starting(pod: PodView) -> bool:
    """Whether its container has yet to run."""
    return pod.state == names.STATE_STARTING and pod.alive and not pod.ip


def is_held(pod: PodView) -> bool:
    """Whether no node takes it, so that none would take another one."""
    return is_starting(pod) and pod.trouble is not None and pod.trouble[0] in _UNPLACEABLE


def is_stuck(pod: PodView, now: datetime) -> bool:
    """Whether it had its time to start, and did not for a reason of its own."""
    return is_starting(pod) and not is_held(pod) and now >= pod.created + STUCK_AFTER


def problem_of(pod: PodView, failures: Mapping[str, Failure], now: datetime) -> Failure | None:
    """Why a pod is given up; None for one that is not.

    `failures`: by UID, what was found out about pods that run.
    """
    if pod.uid in failures:
        return failures[pod.uid]
    if pod.end:
        return Failure(*pod.end)
    if not is_stuck(pod, now):
        return None
    if pod.trouble:
        return Failure(*pod.trouble)
    minutes = int(STUCK_AFTER.total_seconds() // 60)
    return Failure(
        conditions.POD_STUCK,
        f"pod {pod.name} did not start within {minutes} minutes; `kubectl describe pod` says why. "
        "Another one takes its place",
    )


def refused(before: Trials, recipe: str, why: Failure, now: datetime) -> Trials:
    """The trials after a pod that could not be made, or not with all that it needs: without them
    it would be made and unmade as fast as that can be written.
    """
    known = before if before.recipe == recipe else Trials(recipe)
    return Trials(recipe, known.failures + 1, now, why)


def watch(
    before: Trials,
    pods: Sequence[PodView],
    failures: Mapping[str, Failure],
    recipe: str,
    now: datetime,
) -> Trials:
    """The trials after a look at an Environment's pods.

    A pod that was warm once fails for reasons that say nothing about the next one; an open network
    is tried again and again by the pods that found it open.
    """
    trials = before if before.recipe == recipe else Trials(recipe)
    if trials.last and trials.last > now:
        # The clock was set back: nothing waits for it to come there again.
        trials = replace(trials, last=now)
    mine = [pod for pod in pods if pod.recipe == recipe]
    good = [
        pod
        for pod in mine
        if pod.state != names.STATE_STARTING and pod.alive and pod.uid not in failures
    ]
    if trials.last and any(pod.created > trials.last for pod in good):
        trials = Trials(recipe)
    for pod in mine:
        if pod.state != names.STATE_STARTING:
            continue
        why = problem_of(pod, failures, now)
        if why is None or why.reason == conditions.NETWORK_NOT_ENFORCED:
            continue
        # Those that were made together failed together: one failure.
        if trials.last is None or pod.created > trials.last:
            trials = Trials(recipe, trials.failures + 1, now, why)
    return trials
