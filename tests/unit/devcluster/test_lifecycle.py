"""One command at a time, and what is left when nothing runs."""

import stat
from pathlib import Path

import pytest

from cloister_devcluster import __main__ as command
from cloister_devcluster import lifecycle
from cloister_devcluster.errors import ClusterError
from cloister_devcluster.places import Places


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setenv("CLOISTER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("CLOISTER_CLUSTER", "unit")
    return Places("unit", tmp_path / "state" / "unit")


def test_a_second_command_is_refused(places: Places) -> None:
    with (
        lifecycle.locked(places),
        pytest.raises(ClusterError, match="another command"),
        lifecycle.locked(places),
    ):
        pytest.fail("two commands have the lock")


def test_the_lock_is_free_again_afterwards(places: Places) -> None:
    with lifecycle.locked(places):
        pass
    with lifecycle.locked(places):
        pass


def test_a_removed_lock_file_keeps_nobody_out_and_nobody_in(places: Places) -> None:
    with lifecycle.locked(places):
        places.lock.unlink()
        with lifecycle.locked(places):
            assert places.lock.exists()


def test_two_clusters_do_not_lock_each_other_out(places: Places) -> None:
    other = Places("other", places.base.parent / "other")
    with lifecycle.locked(places), lifecycle.locked(other):
        assert places.lock != other.lock


def test_a_cluster_that_is_down_is_not_ready(places: Places) -> None:
    assert not lifecycle.is_ready(places)
    with pytest.raises(ClusterError, match="not running"):
        lifecycle.running(places)


def test_status_of_a_stopped_cluster_exits_with_3(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cloister_devcluster", "status"])
    assert command.main() == 3
    assert "is not running" in capsys.readouterr().out


def test_an_unknown_binary_is_named(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["cloister_devcluster", "bin", "docker"])
    assert command.main() == 1
    assert "there is no component docker" in capsys.readouterr().err


def test_private_files_are_their_owner_s_only(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    lifecycle.write_private(path, "one")
    lifecycle.write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["kubeconfig"]
