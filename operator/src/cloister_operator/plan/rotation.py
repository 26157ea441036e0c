"""When the CA's next generation is made, issues, and is alone."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

OVERLAP: Final = timedelta(hours=2)
"""From its being told to its issuing: workers get the CAs to trust with each certificate, which
lasts an hour and is renewed before."""
RENEWED_BEFORE: Final = timedelta(days=2 * 365)
"""A CA that ends sooner than this is replaced: pods' certificates last a year, and what it signs in
the meantime must not be cut short by its end."""
RETAINED: Final = timedelta(days=368)
"""How long an earlier CA is trusted at most: longer than anything that it signed lives."""
PATIENCE: Final = timedelta(days=7)
"""A pod that cannot be told for so long keeps the others waiting no more."""
CLOCKS: Final = timedelta(minutes=10)
"""How far clocks may be apart, with room for writes under way."""


class Step(Enum):
    """What is to be done about the CA."""

    NONE = "none"
    INTRODUCE = "introduce"
    """Make the next one and let everybody trust it."""
    SWITCH = "switch"
    """Issue with the next one."""
    DROP = "drop"
    """Trust no earlier one any more."""


@dataclass(frozen=True)
class Facts:
    """What is known about the CAs and about those who trust them."""

    changed_at: datetime
    """When the last step was made."""
    ends: datetime
    """When the one that issues ends."""
    upcoming: bool
    """Whether the next one is there."""
    former: int
    """How many earlier ones are trusted."""
    requested: bool
    """Whether somebody asked for a new one since."""
    untold: int
    """Pods that may not trust the next one yet."""
    from_before: int
    """Pods that are older than the last step: an earlier CA may have signed what they live by."""


def plan(facts: Facts, now: datetime, overlap: timedelta, most_former: int) -> Step:
    """The step that is due; each is safe to plan again after it was carried out in part.

    `overlap`: see OVERLAP, what the platform set in its place. `most_former`: earlier ones that may
    be trusted at the same time; no further one is asked for while there are so many.
    """
    since = now - facts.changed_at
    if facts.upcoming:
        if since < overlap:
            return Step.NONE
        told = not facts.untold or since >= max(PATIENCE, overlap)
        return Step.SWITCH if told else Step.NONE
    if facts.former < most_former and (facts.requested or facts.ends - now < RENEWED_BEFORE):
        return Step.INTRODUCE
    if facts.former:
        # Workers' certificates end by themselves within the hour; pods are counted.
        unused = not facts.from_before and since >= max(overlap, OVERLAP)
        if unused or since >= RETAINED:
            return Step.DROP
    return Step.NONE


def is_from_before(created: datetime, changed_at: datetime) -> bool:
    """Whether a pod may have been made before a step."""
    return created < changed_at + CLOCKS
