"""Choosing addresses, waiting, and finding processes."""

import os
import subprocess
from pathlib import Path

import pytest

from cloister_devcluster import node
from cloister_devcluster.errors import ClusterError
from cloister_devcluster.places import Places


def test_the_seed_decides_when_nothing_is_taken() -> None:
    assert node.choose_network(7, []) == "10.200.7"
    assert node.choose_network(256 + 7, []) == "10.200.7"


def test_a_taken_network_is_left_alone() -> None:
    assert node.choose_network(7, ["10.200.7.0/24"]) == "10.200.8"
    assert node.choose_network(7, ["10.200.7.99"]) == "10.200.8"


def test_the_search_wraps_around() -> None:
    assert node.choose_network(255, ["10.200.255.0/24"]) == "10.200.0"


def test_a_wide_route_takes_everything_below_it() -> None:
    assert node.choose_network(3, ["10.200.0.0/17"]) == "10.200.128"


def test_other_routes_do_not_matter() -> None:
    assert node.choose_network(7, ["192.168.0.0/16", "10.201.7.0/24"]) == "10.200.7"


def test_no_free_network_is_an_error() -> None:
    with pytest.raises(ClusterError, match="is free"):
        node.choose_network(0, ["10.0.0.0/8"])


def test_waiting_says_what_did_not_come() -> None:
    with pytest.raises(ClusterError, match="the node did not come within 0 s"):
        node.wait_until(lambda: False, 0, "the node")


def test_waiting_ends_when_the_condition_holds() -> None:
    answers = iter([False, False, True])
    node.wait_until(lambda: next(answers), 60, "it")
    assert next(answers, None) is None


@pytest.mark.parametrize("goes", [True, False])
def test_a_link_that_goes_by_itself_meanwhile_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes: bool
) -> None:
    def fails(*_: str) -> None:
        if goes:
            (tmp_path / "clo-x").rmdir()
        raise ClusterError("Cannot find device")

    monkeypatch.setattr(node, "_LINKS", tmp_path)
    monkeypatch.setattr(node, "_ip", fails)
    node.unlink("clo-x")
    (tmp_path / "clo-x").mkdir()
    if goes:
        node.unlink("clo-x")
    else:
        with pytest.raises(ClusterError, match="Cannot find device"):
            node.unlink("clo-x")


def test_a_stopped_cluster_has_no_holder(tmp_path: Path) -> None:
    assert node.holder(Places("none", tmp_path / "none")) is None


def test_a_process_that_only_names_the_holder_is_not_one(tmp_path: Path) -> None:
    places = Places("fake", tmp_path / "fake")
    fake = subprocess.Popen(["sh", "-c", "read line", str(node.HOLDER), str(places.base)],
                            stdin=subprocess.PIPE)  # fmt: skip
    try:
        assert node.holder(places) is None
    finally:
        fake.communicate()


def test_stop_ends_a_process() -> None:
    process = subprocess.Popen(["sleep", "600"])
    node.stop(process.pid)
    assert process.wait() == -15


def test_stop_kills_what_does_not_listen() -> None:
    process = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    group = os.getpgid(process.pid)
    try:
        node.stop(process.pid, seconds=0.2)
        assert process.wait() == -9
    finally:
        process.stdout.close()
        os.killpg(group, 9)


def test_settings_are_written_back_only_where_they_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in node.SYSCTLS:
        assert not name.startswith("/")
    # Writing what is there already must not even try: the test need not be root.
    monkeypatch.setattr(Path, "write_text", lambda *_: pytest.fail("nothing differs"))
    node.apply_settings(node.settings())
