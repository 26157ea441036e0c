"""Readers that do not read: flow control is shut while programs print megabytes, and end."""

import subprocess
from collections.abc import Iterator

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from support.jobs import Jobs, read
from support.memory import peak
from support.sandbox_server import SESSION_NAME, SESSION_UID, Sandbox, Tools, sandbox

pytestmark = pytest.mark.long

MIB = 1024 * 1024
COMMAND = ("seq", "-w", "1", "2999999")
STALLED = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with sandbox(tmp_path_factory.mktemp("stalled")) as started:
        started.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        started.claim()
        yield started


@pytest.fixture
def channel(server: Sandbox) -> Iterator[grpc.Channel]:
    """A worker's connection whose streams take little ahead of their readers."""
    pair = server.authority.issue(uri=f"session:{SESSION_UID}")
    credentials = grpc.ssl_channel_credentials(
        server.authority.pem, pair.private_key, pair.certificate
    )
    options = [
        ("grpc.ssl_target_name_override", SESSION_NAME),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 65_536),
    ]
    with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials, options) as made:
        yield made


@pytest.fixture(scope="module")
def printed() -> bytes:
    """What the programs print: 24 MB, of which no two lines are the same."""
    return subprocess.run(COMMAND, check=True, capture_output=True).stdout


@pytest.mark.parametrize(("spool", "lost"), [(64 * MIB, False), (4 * MIB, True)])
def test_programs_end_others_go_on_and_the_rest_is_there_later(
    server: Sandbox, channel: grpc.Channel, printed: bytes, spool: int, lost: bool
) -> None:
    jobs, tools = Jobs(channel), Tools(channel)
    policy = exec_pb2.OutputPolicy(spool_bytes=spool)
    assert jobs.program(*COMMAND, output=policy).exited.code == 0
    before = peak(server.process.pid)
    names = [f"stalled-{spool}-{number}" for number in range(STALLED)]
    streams = [jobs.start(*COMMAND, process_id=name, output=policy) for name in names]
    for name in names:
        ended = jobs.wait(name)
        assert ended.HasField("exit"), "it ends though nobody reads"
        assert tools.bash("echo on") == "on"
    assert peak(server.process.pid) < before + STALLED * len(printed) // 2
    for stream in streams:
        seen = read(stream)
        assert seen.exited.code == 0
        assert bool(seen.gaps) == lost
        for each in seen.events:
            start = each.output.offset
            assert each.output.data == printed[start : start + len(each.output.data)]
        missing = sum(end - start for start, end in seen.gaps)
        assert len(seen.output()) + missing == len(printed)
        assert seen.exited.truncation.omitted_bytes == missing


def test_a_program_that_is_to_wait_waits_and_nothing_is_lost(
    channel: grpc.Channel, printed: bytes
) -> None:
    jobs, tools = Jobs(channel), Tools(channel)
    policy = exec_pb2.OutputPolicy(spool_bytes=1, block_when_full=True)
    stream = jobs.start(*COMMAND, process_id="waits", output=policy)
    assert tools.bash("echo on") == "on"
    assert jobs.program("true").exited.code == 0
    # Most of the output has no place before it is read.
    assert not jobs.listed()["waits"].HasField("exit")
    seen = read(stream)
    assert (seen.gaps, seen.exited.code) == ([], 0)
    assert seen.output() == printed


def test_neither_stream_of_a_program_that_is_to_wait_loses_anything(channel: grpc.Channel) -> None:
    """Both are read at the same time, and what is under way comes when it is to wait already."""
    jobs = Jobs(channel)
    size = 8 * 1024 * 1024
    policy = exec_pb2.OutputPolicy(spool_bytes=1, block_when_full=True, separate_stderr=True)
    script = f"head -c {size} /dev/zero & head -c {size} /dev/zero >&2; wait"
    stream = jobs.start("bash", "-c", script, process_id="both", output=policy)
    assert jobs.program("true").exited.code == 0
    assert not jobs.listed()["both"].HasField("exit")
    seen = read(stream)
    assert (seen.gaps, seen.exited.code) == ([], 0)
    assert len(seen.output()) == 2 * size
