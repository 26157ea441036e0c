"""Who leads: what a Lease says, and whether it may be taken; pure, with every clock passed in.

The clocks of two machines are never compared. A candidate counts from the moment at which it saw
the Lease change, by its own monotonic clock, and a leader from before its renewal was sent: the
leader's time is over first, whatever their clocks of day say.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from .. import names
from ..api.common import JSON
from ..api.conditions import parse_time, precise

DURATION: Final = 10.0
"""Seconds without a renewal after which another one may take the Lease."""
DEADLINE: Final = 8.0
"""Seconds after which a leader that could not renew acts no more. The rest of DURATION is for what
it had sent by then to arrive."""
RENEW_EVERY: Final = 2.0
"""Seconds between two renewals."""
LOOK_EVERY: Final = 1.0
"""Seconds between two looks of who does not lead: a released Lease is taken within that."""


@dataclass(frozen=True)
class Record:
    """A Lease as it was read."""

    version: str
    """Its resourceVersion: a write names it, so that of several candidates one succeeds."""
    holder: str = ""
    """Empty when it was released."""
    address: str = ""
    """host:port of the holder's Sessions API."""
    duration: float = DURATION
    """Seconds that its holder asked for."""
    transitions: int = 0
    created: int = 0
    """Seconds since 1970, by the API server's clock."""

    @property
    def term(self) -> int:
        """Counts who leads, and goes on where somebody deleted the Lease: one that is made anew
        counts its transitions from nought.
        """
        return (self.created << 24) + self.transitions


def read(lease: JSON) -> Record:
    """What the Lease says; what is missing or senseless in it counts as released."""
    spec = lease.get("spec") or {}
    metadata = lease["metadata"]
    created = metadata.get("creationTimestamp")
    return Record(
        version=metadata["resourceVersion"],
        holder=spec.get("holderIdentity") or "",
        address=(metadata.get("annotations") or {}).get(names.LEADER_ADDRESS, ""),
        duration=float(spec.get("leaseDurationSeconds") or DURATION),
        transitions=int(spec.get("leaseTransitions") or 0),
        created=int(parse_time(created).timestamp()) if created else 0,
    )


@dataclass(frozen=True)
class Seen:
    """A Lease, and since when it has been as it is, in seconds of one monotonic clock."""

    record: Record
    since: float


def seen(before: Seen | None, record: Record, now: float) -> Seen:
    """What is known after the Lease was read again; a renewal changes its version."""
    if before is not None and before.record == record:
        return before
    return Seen(record, now)


def may_take(found: Seen, identity: str, now: float) -> bool:
    """Whether the Lease is ours already, was released, or has run out."""
    record = found.record
    return record.holder in ("", identity) or now >= found.since + record.duration


def fresh(identity: str, address: str, now: datetime) -> JSON:
    """The Lease where there is none."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": names.LEASE,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
            "annotations": {names.LEADER_ADDRESS: address},
        },
        "spec": _spec(Record("", identity), now, now),
    }


def taken(found: Record, identity: str, address: str, now: datetime) -> list[JSON]:
    """The JSON-Patch that takes the Lease, or renews it, as it was read and no other."""
    if found.holder == identity:
        return [
            _unchanged(found),
            {"op": "replace", "path": "/spec/renewTime", "value": precise(now)},
            _annotation(address),
        ]
    mine = replace(found, holder=identity, transitions=found.transitions + 1)
    return [
        _unchanged(found),
        {"op": "add", "path": "/spec", "value": _spec(mine, now, now)},
        _annotation(address),
    ]


def released(found: Record) -> list[JSON]:
    """The JSON-Patch that gives the Lease away at once."""
    return [
        _unchanged(found),
        {"op": "replace", "path": "/spec/holderIdentity", "value": ""},
        _annotation(""),
    ]


def _unchanged(found: Record) -> JSON:
    return {"op": "test", "path": "/metadata/resourceVersion", "value": found.version}


def _annotation(address: str) -> JSON:
    return {"op": "add", "path": "/metadata/annotations", "value": {names.LEADER_ADDRESS: address}}


def _spec(record: Record, acquired: datetime, renewed: datetime) -> JSON:
    return {
        "holderIdentity": record.holder,
        "leaseDurationSeconds": int(DURATION),
        "acquireTime": precise(acquired),
        "renewTime": precise(renewed),
        "leaseTransitions": record.transitions,
    }
