"""Checking a tool's input; every refusal names the field and what was expected."""

import math
import re
from collections.abc import Mapping
from typing import Any

from ..paths import ToolFailure

_YES = frozenset(("true", "t", "yes", "y", "on", "1"))
_NO = frozenset(("false", "f", "no", "n", "off", "0"))
_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")


class Inputs:
    """One call's input, read field by field."""

    def __init__(self, tool: str, given: Mapping[str, Any], known: frozenset[str]) -> None:
        unknown = sorted(set(given) - known)
        if unknown:
            raise ToolFailure(
                f"{tool}: unknown argument {unknown[0]}; it takes {', '.join(sorted(known))}"
            )
        self._tool = tool
        self._given = given

    def text(self, name: str) -> str:
        """A required string."""
        if name not in self._given:
            raise ToolFailure(f"{self._tool}: argument {name} is missing")
        found = self._given[name]
        if not isinstance(found, str):
            raise self._wrong(name, "a string", found)
        return found

    def optional_text(self, name: str) -> str | None:
        """A string, or None when absent."""
        return None if self._given.get(name) is None else self.text(name)

    def flag(self, name: str) -> bool:
        """A boolean, False when absent; words and numbers that mean one are taken too."""
        found = self._given.get(name)
        if found is None or (isinstance(found, bool | int | float) and found in (0, 1)):
            return bool(found)
        if isinstance(found, str) and found.lower() in _YES | _NO:
            return found.lower() in _YES
        raise self._wrong(name, "true or false", found)

    def integer(self, name: str) -> int | None:
        """A whole number, also written as a string; None when absent."""
        found = self._given.get(name)
        return None if found is None else self._whole(name, found)

    def integers(self, name: str) -> list[int] | None:
        """A list of whole numbers; None when absent."""
        found = self._given.get(name)
        if found is None:
            return None
        if not isinstance(found, list):
            raise self._wrong(name, "a list of whole numbers", found)
        return [self._whole(name, each) for each in found]

    def _whole(self, name: str, found: Any) -> int:
        if isinstance(found, str):
            whole = _WHOLE.fullmatch(found.strip())
            if whole is None:
                raise self._wrong(name, "a whole number", found)
            return int(whole[1])
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise self._wrong(name, "a whole number", found)
        if not math.isfinite(found) or found != int(found):
            raise self._wrong(name, "a whole number", found)
        return int(found)

    def _wrong(self, name: str, expected: str, found: Any) -> ToolFailure:
        kind = {str: "a string", bool: "a boolean", list: "a list", dict: "an object"}.get(
            type(found), "null" if found is None else "a number"
        )
        return ToolFailure(f"{self._tool}: argument {name} must be {expected}, not {kind}")
