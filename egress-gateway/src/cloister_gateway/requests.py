"""From a request of the operator to a state: everything is checked before anything is used."""

import ipaddress
import re
from collections.abc import Sequence

from cloister_api.egress.v1 import egress_pb2

from .hosts import is_pattern
from .ranges import plain
from .state import Source, State

MAX_POLICIES = 10_000
MAX_HOSTS = 1_024
MAX_SOURCES = 100_000
MAX_RANGES = 4_096
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?")


class InvalidField(Exception):
    """A field is wrong; the message begins with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")


def to_state(request: egress_pb2.ApplyRequest) -> State:
    """The state that a request describes; raises InvalidField."""
    for name, value in (("term", request.term), ("revision", request.revision)):
        if value < 0:
            raise InvalidField(name, "is negative")
    _bound("policies", request.policies, MAX_POLICIES)
    _bound("sources", request.sources, MAX_SOURCES)
    _bound("denied_ranges", request.denied_ranges, MAX_RANGES)
    policies: dict[str, tuple[str, ...]] = {}
    for at, policy in enumerate(request.policies):
        field = f"policies[{at}]"
        _identifier(f"{field}.id", policy.id)
        if policy.id in policies:
            raise InvalidField(f"{field}.id", "is there twice")
        _bound(f"{field}.hosts", policy.hosts, MAX_HOSTS)
        for index, host in enumerate(policy.hosts):
            if not is_pattern(host):
                raise InvalidField(
                    f"{field}.hosts[{index}]",
                    f"must be a name in lower case, or *. and a name: {host[:100]!r}",
                )
        policies[policy.id] = tuple(policy.hosts)
    return State(
        term=request.term,
        revision=request.revision,
        policies=policies,
        sources=_sources(request, policies),
        denied_ranges=_ranges(request),
    )


def _sources(
    request: egress_pb2.ApplyRequest, policies: dict[str, tuple[str, ...]]
) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for at, source in enumerate(request.sources):
        field = f"sources[{at}]"
        try:
            parsed = plain(source.address)
        except ValueError:
            raise InvalidField(f"{field}.address", f"is none: {source.address[:60]!r}") from None
        if parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast:
            raise InvalidField(f"{field}.address", f"is no pod's: {source.address[:60]!r}")
        address = str(parsed)
        if address in sources:
            raise InvalidField(f"{field}.address", f"is there twice: {address}")
        if source.policy_id not in policies:
            raise InvalidField(f"{field}.policy_id", f"is no policy: {source.policy_id[:60]!r}")
        _identifier(f"{field}.pod_uid", source.pod_uid)
        sources[address] = Source(source.policy_id, source.pod_uid)
    return sources


def _ranges(request: egress_pb2.ApplyRequest) -> tuple[str, ...]:
    found = set()
    for at, text in enumerate(request.denied_ranges):
        try:
            found.add(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise InvalidField(f"denied_ranges[{at}]", f"is no CIDR: {text[:60]!r}") from None
    return tuple(sorted(found))


def _bound(field: str, values: Sequence[object], most: int) -> None:
    if len(values) > most:
        raise InvalidField(field, f"has {len(values)} entries, and may have {most}")


def _identifier(field: str, text: str) -> None:
    # It is part of an answer to squid, too, whose words end at a space.
    if not _ID.fullmatch(text):
        raise InvalidField(field, f"is no identifier: {text[:60]!r}")
