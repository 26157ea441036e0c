"""What people and clusters do, as a list of steps that a seed draws and that can be shortened."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """After so many virtual seconds, do this; what `n` and `m` mean is the action's own affair.

    Both choose among what is there when it is done, so that a step means something whatever
    happened before it.
    """

    after: float
    do: str
    n: int = 0
    m: int = 0

    def __str__(self) -> str:
        return f"    Step({self.after}, {self.do!r}, {self.n}, {self.m}),"


ACTIONS: dict[str, int] = {
    # What people do.
    "environment": 6,
    "remove_environment": 2,
    "session": 10,
    "remove_session": 5,
    "call": 10,
    "rush": 5,
    "release": 3,
    "rest": 2,
    "suspend": 4,
    "resume": 3,
    # What happens to pods and nodes.
    "fail_pod": 4,
    "delete_pod": 3,
    "node_gone": 2,
    "hold_starts": 2,
    "hold_ends": 2,
    "silence": 2,
    "open_network": 1,
    # What happens to the API server and the way to it.
    "faults": 4,
    "cut_watches": 3,
    "hold_watches": 3,
    "forget_history": 3,
    "away": 3,
    "hold_collector": 2,
    "close_namespace": 1,
    # What happens to operators.
    "kill_at": 5,
    "kill": 3,
    "second": 6,
}
"""How often each is drawn."""
_PAUSES = (0.0, 0.0, 0.003, 0.01, 0.05, 0.2, 1.0, 3.0, 20.0, 70.0)


_SHORT = (2, 3, 3, 4, 4, 6, 8, 12)
_LONG = (6, 10, 16, 24)
"""Steps; what a schedule costs grows with them, and what goes wrong mostly needs few."""
FIRST_LONG = 100_000
"""Seeds from here on are for those who have time."""


def draw(seed: int) -> list[Step]:
    """The schedule of a seed: an Environment, then anything.

    Each seed leaves out some actions altogether, as what they do hides what others would.
    """
    rng = random.Random(seed)
    share = rng.choice((0.3, 0.6, 1.0))
    kinds = [each for each in ACTIONS if rng.random() < share]
    kinds += ["session", "call"]
    weights = [ACTIONS[each] for each in kinds]
    pauses = rng.sample(_PAUSES, 3)
    # Every third one keeps workspaces.
    steps = [Step(0.0, "environment", rng.choice((0, 0, 24)), rng.randrange(36))]
    for _ in range(rng.choice(_LONG if seed >= FIRST_LONG else _SHORT)):
        (kind,) = rng.choices(kinds, weights)
        steps.append(Step(rng.choice(pauses), kind, rng.randrange(36), rng.randrange(36)))
    return steps


def limit(seed: int) -> int:
    """The sessions that the platform allows in a namespace; 0: any number."""
    return 3 if seed % 4 == 3 else 0


def shrink(
    steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool], attempts: int = 150
) -> list[Step]:
    """The steps without those that the failure does not need: ever smaller pieces are left out."""
    best, size = list(steps), max(1, len(steps) // 2)
    while attempts > 0:
        begin = 0
        before = len(best)
        while begin < len(best) and attempts > 0:
            shorter = best[:begin] + best[begin + size :]
            attempts -= 1
            if fails(shorter):
                best = shorter
            else:
                begin += size
        if size == 1 and len(best) == before:
            break
        size = max(1, size // 2)
    return best
