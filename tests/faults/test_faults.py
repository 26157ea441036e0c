"""A thousand calls through a network that breaks: each runs once, nothing is lost or repeated."""

import asyncio
import os
from pathlib import Path

import pytest

import cloister.aio
from cloister import _channels, _connection
from faults.runs import World, lane_of, planned, run, world
from faults.streams import impatient
from support.fault_proxy import Fault, Kind, Way

SEED = int(os.environ.get("FAULT_SEED", "1"))
CALLS = 1000
SOON = 75
"""Of the calls, those that are made in `make check`; all of them in `make long`."""


@pytest.mark.parametrize("calls", [SOON, pytest.param(CALLS, marks=pytest.mark.long)])
def test_a_thousand_calls_over_a_network_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    impatient(monkeypatch.setattr)
    # FAULT_CALL=7 makes one call of the thousand again, by itself.
    only = os.environ.get("FAULT_CALL")
    numbers = [int(only)] if only else range(calls)
    with world(tmp_path) as place:
        report = asyncio.run(run(place, planned(SEED, numbers, scale=0.1)))
    print(report)
    assert not report.problems, "\n\n".join(report.problems)
    assert report.calls.total() == len(numbers)


def test_a_connection_that_fell_silent_is_left_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Writing to a program lasts until it reads: nothing but keepalive tells that it is in vain.
    _hurry(monkeypatch)

    async def write(place: World) -> bytes:
        async with (
            asyncio.timeout(30),
            cloister.aio.AsyncClient(kubeconfig=place.kubeconfig, direct=True) as client,
            lane_of(place, client, "lane") as (lane, proxy),
            await lane.session.start(["cat"], stdin=True) as program,
        ):
            await program.write(b"before, ")
            proxy.arm([Fault(Kind.STALL, Way.UP, after_bytes=1, seconds=3600)])
            await program.write(b"after")
            assert proxy.happened == {Kind.STALL: 1}
            await program.close_stdin()
            return await program.output()

    with world(tmp_path) as place:
        assert asyncio.run(write(place)) == b"before, after"


def test_an_upload_whose_connection_fell_silent_goes_on_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    # As outside of tests: keepalive takes all the time for which a call is repeated.
    monkeypatch.setattr(_connection, "RETRY_SECONDS", 1.5)

    async def upload(place: World) -> bytes:
        async with (
            asyncio.timeout(30),
            cloister.aio.AsyncClient(kubeconfig=place.kubeconfig, direct=True) as client,
            lane_of(place, client, "lane") as (lane, proxy),
        ):
            await lane.session.write_bytes("first", b"before")
            proxy.arm([Fault(Kind.STALL, Way.UP, after_bytes=1, seconds=3600)])
            await lane.session.write_bytes("second", b"after")
            assert proxy.happened == {Kind.STALL: 1}
            return await lane.session.read_bytes("second")

    with world(tmp_path) as place:
        assert asyncio.run(upload(place)) == b"after"


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let keepalive find a dead connection after 1.5 s."""
    hurried = [
        (name, int(value) // 20) for name, value in _channels._KEEPALIVE if name.endswith("_ms")
    ]
    monkeypatch.setattr(_channels, "_KEEPALIVE", hurried)
