"""What the gateway holds and what it decides by it. Pure: files and clocks are others' business."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from .hosts import Hosts, canonical
from .ranges import plain

FORMAT = 1
HTTPS, HTTP = 443, 80


class Reason(StrEnum):
    """Why something was decided; the words of the API."""

    ALLOWED = "Allowed"
    UNKNOWN_SOURCE = "UnknownSource"
    HOST_NOT_ALLOWED = "HostNotAllowed"
    PORT_NOT_ALLOWED = "PortNotAllowed"
    NOT_A_NAME = "NotAName"
    ADDRESS_DENIED = "AddressDenied"
    NAME_MISMATCH = "NameMismatch"
    NO_STATE = "NoState"
    TOO_MANY_CONNECTIONS = "TooManyConnections"


@dataclass(frozen=True)
class Source:
    """A pod, by its address."""

    policy: str
    pod_uid: str


@dataclass(frozen=True)
class State:
    """One whole state; (term, revision) orders them."""

    term: int = 0
    revision: int = 0
    policies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    """By canonical address."""
    denied_ranges: tuple[str, ...] = ()
    cutting: frozenset[str] = frozenset()
    """Addresses whose connections are to be cut: told again after a crash, until it is done."""

    @property
    def version(self) -> tuple[int, int]:
        return self.term, self.revision

    def same_rules(self, other: "State") -> bool:
        """Whether both decide alike."""
        return (self.policies, self.sources, self.denied_ranges) == (
            other.policies,
            other.sources,
            other.denied_ranges,
        )

    def encode(self) -> bytes:
        """The state as it is kept in a file."""
        return json.dumps(
            {
                "format": FORMAT,
                "term": self.term,
                "revision": self.revision,
                "policies": {key: list(hosts) for key, hosts in self.policies.items()},
                "sources": {key: [each.policy, each.pod_uid] for key, each in self.sources.items()},
                "denied": list(self.denied_ranges),
                "cutting": sorted(self.cutting),
            }
        ).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "State":
        """A state from its file; ValueError for anything that `encode` does not write."""
        try:
            data: Any = json.loads(raw)
            if data["format"] != FORMAT:
                raise ValueError("another format")
            policies = {_text(key): _texts(hosts) for key, hosts in data["policies"].items()}
            sources = {}
            for address, (policy, pod_uid) in data["sources"].items():
                # Not whether it is an address: with thousands of sources that takes most of the
                # time, in which nothing is decided, and what is none is nobody's.
                if policy not in policies:
                    raise ValueError("a source without a policy")
                sources[address] = Source(_text(policy), _text(pod_uid))
            return cls(
                term=_whole(data["term"]),
                revision=_whole(data["revision"]),
                policies=policies,
                sources=sources,
                denied_ranges=_texts(data["denied"]),
                cutting=frozenset(_texts(data["cutting"])),
            )
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a state: {type(error).__name__}") from None


def losers(before: State, after: State) -> frozenset[str]:
    """Sources that may do less than before, or are another pod: their connections are to end.

    All of them, not only those to hosts that were lost: which host a connection leads to is known
    two processes further on, and a recipe that loses a host is rare. Ranges that
    are denied now are another matter; see service.Holder.
    """
    was = {key: Hosts(each) for key, each in before.policies.items()}
    now = {key: Hosts(each) for key, each in after.policies.items()}

    def keeps(old: Source, new: Source | None) -> bool:
        same = new is not None and new.pod_uid == old.pod_uid
        return new is not None and same and now[new.policy].covers(was[old.policy])

    return frozenset(
        address
        for address, old in before.sources.items()
        if not keeps(old, after.sources.get(address))
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer, and what it is reported as."""

    reason: Reason
    address: str
    pod_uid: str
    host: str
    """Empty for what is no name."""
    port: int

    @property
    def allowed(self) -> bool:
        return self.reason is Reason.ALLOWED


class Decider:
    """Answers for one state. None, no state that can be read, denies everything."""

    def __init__(self, state: State | None) -> None:
        self._sources = state.sources if state else {}
        self._hosts = {key: Hosts(each) for key, each in state.policies.items()} if state else {}
        self._any = state is not None

    def decide(self, address: str, method: str, host: str, port: str) -> Verdict:
        """Whether this source may reach the host: 443 by CONNECT, 80 by anything else."""
        try:
            address = str(plain(address))
        except ValueError:
            address = ""
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
        name = canonical(host)
        source = self._sources.get(address)
        if not self._any:
            reason = Reason.NO_STATE
        elif source is None:
            reason = Reason.UNKNOWN_SOURCE
        elif name is None:
            reason = Reason.NOT_A_NAME
        elif name not in self._hosts[source.policy]:
            reason = Reason.HOST_NOT_ALLOWED
        elif number != (HTTPS if method == "CONNECT" else HTTP):
            reason = Reason.PORT_NOT_ALLOWED
        else:
            reason = Reason.ALLOWED
        return Verdict(reason, address, source.pod_uid if source else "", name or "", number)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _texts(values: Sequence[object]) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise TypeError("not a list")
    return tuple(_text(each) for each in values)


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError("not a count")
    return value
