"""Glob patterns, matched in bounded time whatever the pattern.

`**` spans directories, `*` and `?` stay in one, `[a-z]` and `[!a-z]` are sets, `{a,b}` are
alternatives. Not translated to regular expressions: those take exponential time on hostile
patterns, and hold the interpreter while they do.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

GoOn = Callable[[], None]
"""Called again and again, however long path and pattern are; raises when the work is to stop."""
MAX_LENGTH = 4096
MAX_ALTERNATIVES = 64
MAX_EXPANDED = 16_384
"""Characters of all alternatives together: each is compared with each path."""


class BadPattern(Exception):
    """The pattern cannot be used; the message says why."""


@dataclass(frozen=True)
class OneOf:
    """A set of characters; `?` is the negation of an empty one."""

    members: frozenset[str]
    ranges: tuple[tuple[str, str], ...]
    negated: bool

    def accepts(self, char: str) -> bool:
        """Whether the character is in the set."""
        inside = char in self.members or any(low <= char <= high for low, high in self.ranges)
        return inside is not self.negated


_ANY = OneOf(frozenset(), (), negated=True)
Token = OneOf | None
"""None is a star: any run of characters."""


def _always() -> None:
    """Nobody bounds it."""


class Pattern:
    """One compiled pattern; raises BadPattern when it is too long or has too many alternatives."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_LENGTH:
            raise BadPattern(f"longer than {MAX_LENGTH} characters")
        alternatives = _braces(text)
        if sum(map(len, alternatives)) > MAX_EXPANDED:
            raise BadPattern(f"its alternatives are longer than {MAX_EXPANDED} characters")
        self._alternatives = [
            [None if part == "**" else _component(part) for part in each.split("/") if part]
            for each in alternatives
        ]

    def matches(self, relative: str, links: Collection[int] = (), go_on: GoOn = _always) -> bool:
        """Whether a path relative to the root matches; raises what `go_on` raises.

        `links` are the positions of its parts that are links: `**` does not span those.
        """
        parts = relative.split("/")
        if not links:
            return any(_match_path(each, parts, go_on) for each in self._alternatives)
        return any(len(each) in _states(each, parts, links, go_on) for each in self._alternatives)

    def enters(self, relative: str, links: Collection[int], go_on: GoOn = _always) -> bool:
        """Whether something below a path, which is a link itself, may match; raises likewise."""
        parts = relative.split("/")
        links = {*links, len(parts) - 1}
        return any(
            min(_states(each, parts, links, go_on), default=len(each)) < len(each)
            for each in self._alternatives
        )


def _states(
    pattern: "list[list[Token] | None]", parts: list[str], links: Collection[int], go_on: GoOn
) -> set[int]:
    """The components that may come next after these parts; the pattern's length where it is met."""
    states = _closed(pattern, {0})
    for position, part in enumerate(parts):
        go_on()
        after: set[int] = set()
        for at in states:
            component = pattern[at] if at < len(pattern) else []
            if component is None:
                if position not in links:
                    after.add(at)
            elif component and _match_name(component, part):
                after.add(at + 1)
        states = _closed(pattern, after)
    return states


def _closed(pattern: "list[list[Token] | None]", states: set[int]) -> set[int]:
    """With what comes after a `**`, which may stand for no directory at all."""
    for at in sorted(states):
        following = at
        while following < len(pattern) and pattern[following] is None:
            following += 1
            states.add(following)
    return states


def _match_path(pattern: "list[list[Token] | None]", parts: list[str], go_on: GoOn) -> bool:
    """Components against components; None in the pattern is any number of directories.

    The same walk as for stars in a name: only the last `**` ever has to be widened.
    """
    at = position = 0
    star, resume = -1, 0
    while position < len(parts):
        part = pattern[at] if at < len(pattern) else []
        if at < len(pattern) and part is None:
            star, resume = at, position
            at += 1
        elif part and _match_name(part, parts[position]):
            at += 1
            position += 1
        elif star >= 0:
            go_on()
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(each is None for each in pattern[at:])


def _match_name(tokens: list[Token], name: str) -> bool:
    at = position = 0
    star, resume = -1, 0
    while position < len(name):
        token = tokens[at] if at < len(tokens) else _END
        if token is None:
            star, resume = at, position
            at += 1
        elif token.accepts(name[position]):
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(each is None for each in tokens[at:])


_END = OneOf(frozenset(), (), negated=False)
"""Accepts nothing: the pattern is used up."""


def _component(text: str) -> list[Token]:
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        char = text[at]
        end = text.find("]", at + (3 if text.startswith("[!", at) else 2)) if char == "[" else -1
        if char == "*":
            if not tokens or tokens[-1] is not None:
                tokens.append(None)
        elif char == "?":
            tokens.append(_ANY)
        elif end > 0:
            tokens.append(_set(text[at + 1 : end]))
            at = end
        else:
            tokens.append(OneOf(frozenset(char), (), negated=False))
        at += 1
    return tokens


def _set(inside: str) -> OneOf:
    negated = inside.startswith("!")
    body = inside[1:] if negated else inside
    ranges = [(match[0][0], match[0][2]) for match in re.finditer(r".-.", body, re.DOTALL)]
    rest = re.sub(r".-.", "", body, flags=re.DOTALL)
    return OneOf(frozenset(rest), tuple(ranges), negated)


def _braces(text: str) -> list[str]:
    """Every pattern that {a,b} alternatives stand for; braces without a partner are literal."""
    pending, done = [text], []
    while pending:
        each = pending.pop()
        match = re.search(r"\{([^{}]*)\}", each)
        if match is None:
            done.append(each)
        else:
            before, after = each[: match.start()], each[match.end() :]
            pending += [before + choice + after for choice in match[1].split(",")]
        if len(pending) + len(done) > MAX_ALTERNATIVES:
            raise BadPattern(f"more than {MAX_ALTERNATIVES} alternatives")
    return done
