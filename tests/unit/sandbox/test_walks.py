"""Walking a tree, and its bounds."""

import os
from pathlib import Path

import pytest

from cloister_sandbox import walks
from cloister_sandbox.walks import TooLarge, walk


@pytest.mark.parametrize("strict", [True, False])
def test_of_more_directories_than_may_wait_no_more_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, strict: bool
) -> None:
    """One directory can hold millions: they are not gathered first and counted then."""
    monkeypatch.setattr(walks, "MAX_PENDING", 10)
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    seen: list[str] = []
    try:
        with pytest.raises(TooLarge, match="more than 10 directories"):
            seen.extend(each.name for each in walk(root, strict=strict))
        assert len(seen) == 10
    finally:
        os.close(root)


def test_of_the_last_level_nothing_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walks, "MAX_PENDING", 10)
    for number in range(50):
        (tmp_path / f"{number}").mkdir()
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        assert len(list(walk(root, 1))) == 50
        with pytest.raises(TooLarge, match="more than 1 levels"):
            list(walk(root, 1, strict=True))
    finally:
        os.close(root)
