"""What was found out about pods, and about the network that they are in."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Failure:
    """Why a pod cannot become warm: a condition's reason, and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True)
class Proof:
    """What the last sandbox found that tried to reach the cluster."""

    enforced: bool
    message: str
    at: datetime
