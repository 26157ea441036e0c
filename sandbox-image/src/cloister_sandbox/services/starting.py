"""What starting a program and opening a shell have in common."""

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import InvalidField


def directory(workspace: Path, given: str) -> str:
    """Where to start: the workspace, or a directory that may be relative to it."""
    if not given:
        return str(workspace)
    return os.path.join(workspace, given)  # noqa: PTH118 - for every program, a Path costs more


def variables(session: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The session's variables with those of the call; raises InvalidField for a wrong name."""
    for key, value in given.items():
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise InvalidField("env", f"{key!r} cannot be a variable, or its value has a NUL")
    return {**session, **given}
