"""What names a build, and what its progress says."""

from dataclasses import replace
from pathlib import Path

import pytest

from cloister_devcluster import build, progress
from cloister_devcluster.errors import ClusterError


def test_a_key_changes_with_everything_that_decides_the_binary() -> None:
    one = build.find("runc")
    changed = [
        replace(one, version="v0.0.1"),
        replace(one, tags=""),
        replace(one, ldflags="-X a=b"),
        replace(one, cgo=False),
        replace(one, replace={"a": "b@v1"}),
    ]
    keys = {each.key for each in [one, *changed]}
    assert len(keys) == len(changed) + 1
    assert replace(one).key == one.key


def test_names_are_unique() -> None:
    names = [each.name for each in build.load()]
    assert len(names) == len(set(names))


def test_an_unknown_component_lists_the_known_ones() -> None:
    with pytest.raises(ClusterError, match="kubectl"):
        build.find("nothing")


@pytest.mark.parametrize("names", [{"names": ["nothing"]}, {"extra": ["nothing"]}])
def test_an_unknown_name_is_refused_before_anything_is_built(
    names: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path))
    with pytest.raises(ClusterError, match="no component nothing"):
        build.ensure(**names)
    assert list(tmp_path.iterdir()) == []


def test_binaries_are_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOISTER_CACHE", str(tmp_path))
    assert build.find("etcd").path.is_relative_to(tmp_path)


def test_what_remains_is_this_step_s_rest_and_all_later_steps() -> None:
    assert progress.remaining([10, 20, 30], 0, 0) == 60
    assert progress.remaining([10, 20, 30], 1, 5) == 45


def test_a_step_that_takes_longer_than_estimated_does_not_count_backwards() -> None:
    assert progress.remaining([10, 20], 0, 99) == 20


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (754, "12 min 34 s")]
)
def test_spans_read_well(seconds: float, text: str) -> None:
    assert progress.span(seconds) == text
