"""Names of hosts: what counts as one, and which names a policy allows."""

import re
from collections.abc import Iterable

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# The last label is no number: no address, in whatever notation, is a name.
_LAST = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)+{_LAST}")
_MAX = 253
WILDCARD = "*."


def canonical(text: str) -> str | None:
    """The name in lower case without the root's dot; None for what is no name of a host."""
    # Lower case makes ASCII of some letters that are none.
    name = text.lower().removesuffix(".") if text.isascii() else ""
    return name if len(name) <= _MAX and _NAME.fullmatch(name) else None


def is_pattern(text: str) -> bool:
    """Whether a policy may list this: a canonical name, or `*.` and one of two labels or more."""
    name = text.removeprefix(WILDCARD)
    return canonical(name) == name


class Hosts:
    """A policy's hosts, made for fast answers."""

    __slots__ = ("_below", "_exact")

    def __init__(self, patterns: Iterable[str]) -> None:
        listed = set(patterns)
        self._below = frozenset(each[2:] for each in listed if each.startswith(WILDCARD))
        self._exact = frozenset(each for each in listed if not each.startswith(WILDCARD))

    def match(self, name: str) -> str | None:
        """The pattern that allows a canonical name, one of them where there are several."""
        if name in self._exact:
            return name
        at = name.find(".")
        while self._below and at != -1:
            if name[at + 1 :] in self._below:
                return f"{WILDCARD}{name[at + 1 :]}"
            at = name.find(".", at + 1)
        return None

    def __contains__(self, name: str) -> bool:
        """Whether a canonical name is listed, or lies below a wildcard's name."""
        return self.match(name) is not None

    def covers(self, other: "Hosts") -> bool:
        """Whether everything that `other` allows is allowed here; False in doubt."""
        return other._exact.issubset(self._exact) and other._below.issubset(self._below)  # noqa: SLF001
