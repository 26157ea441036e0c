"""Modification times of what is uploaded, to the fraction that a client compares."""

import io
import tarfile
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cloister_sandbox.entries import entry
from cloister_sandbox.uploads import MAX_SECONDS
from support.file_calls import FileCalls
from support.sandbox_server import Sandbox


@pytest.fixture
def files(claimed: Sandbox) -> Iterator[FileCalls]:
    with claimed.worker() as channel:
        yield FileCalls(channel)


def archive(mtime: str) -> bytes:
    """One member with an extended header."""
    member = tarfile.TarInfo("timed")
    member.pax_headers = {"mtime": mtime}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member)
    return out.getvalue()


def test_an_upload_can_keep_its_time(files: FileCalls, claimed: Sandbox) -> None:
    entry = files.upload("timed", b"x", mtime=Timestamp(seconds=1_600_000_000, nanos=123_456_789))
    assert entry.mtime.ToNanoseconds() == 1_600_000_000_123_456_789
    assert (claimed.workspace / "timed").stat().st_mtime_ns == 1_600_000_000_123_456_789


@pytest.mark.parametrize(
    ("given", "kept"), [((-5, 0), 0), ((2**60, 0), MAX_SECONDS), ((1, -7), 1), ((1, 2**31 - 1), 1)]
)
def test_a_time_that_cannot_be_is_brought_into_range(
    given: tuple[int, int], kept: int, files: FileCalls
) -> None:
    entry = files.upload("timed", b"x", mtime=Timestamp(seconds=given[0], nanos=given[1]))
    # A file system may hold less than the bound.
    assert entry.mtime.seconds == kept or kept == MAX_SECONDS > entry.mtime.seconds > 2**31


@pytest.mark.parametrize(
    ("given", "micros"),
    [("1600000000.5", 1_600_000_000_500_000), ("nan", 0), ("inf", 0), ("-3", 0)],
)
def test_a_member_keeps_the_fraction_of_its_time(
    given: str, micros: int, files: FileCalls, claimed: Sandbox
) -> None:
    files.upload("times", archive(given), tree=True)
    assert (claimed.workspace / "times" / "timed").stat().st_mtime_ns // 1000 == micros


@pytest.mark.parametrize(("seconds", "year"), [(2**40, 9999), (-(2**40), 1), (1_600_000_000, 2020)])
def test_a_time_that_no_message_holds_spoils_no_listing(seconds: int, year: int) -> None:
    """Some file systems keep whatever a tool sets."""
    info = SimpleNamespace(
        st_mode=0o100644,
        st_ino=1,
        st_size=0,
        st_mtime_ns=seconds * 10**9,
        st_ctime_ns=seconds * 10**9,
    )
    assert entry("/workspace/x", info).mtime.ToDatetime().year == year  # type: ignore[arg-type]
