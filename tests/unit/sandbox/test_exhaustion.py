"""What the machine runs out of: the caller is told, and the server goes on."""

# ruff: noqa: ASYNC240 - nothing but the test waits for its loop

import asyncio
import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import jobs as jobs_module
from cloister_sandbox.jobs import Job, Reason, oom_kills, reason_of
from cloister_sandbox.outputs import Policy
from cloister_sandbox.overflow import Overflow, Overflows
from cloister_sandbox.services.common import unary, unforeseen
from support.eventually import until
from support.file_calls import FileCalls, eventually
from support.jobs import Jobs, read
from support.sandbox_server import Sandbox, Tools, refused, sandbox

pytestmark = pytest.mark.long

MIB = 1024 * 1024


def made_cgroup(controller: str) -> Path:
    """A new control group with this controller, of version 1 or 2."""
    top = Path("/sys/fs/cgroup")
    above = top if (top / "cgroup.controllers").exists() else top / controller
    if above == top:
        (top / "cgroup.subtree_control").write_text(f"+{controller}")
    group = above / f"test-{uuid.uuid4().hex}"
    group.mkdir()
    return group


@pytest.fixture
def memory_group() -> Iterator[Path]:
    group = made_cgroup("memory")
    yield group
    group.rmdir()


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[tuple[Sandbox, Path]]:
    """A claimed exec server in a control group of its own, and the group."""
    group = made_cgroup("pids")
    with sandbox(tmp_path) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        (group / "cgroup.procs").write_text(str(server.process.pid))
        yield server, group
    group.rmdir()


def test_a_full_table_of_processes(crowded: tuple[Sandbox, Path]) -> None:
    server, group = crowded
    with server.worker() as channel:
        tools, jobs = Tools(channel), Jobs(channel)
        tools.bash("x=kept")
        tools.call("read", file_path="none")
        jobs.bash("true")
        (group / "pids.max").write_text((group / "pids.current").read_text())
        result = tools.call("bash", command="/bin/true; echo $x", timeout_ms=1500)
        assert "fork" in result.content[0].text
        failed = read(jobs.start("/bin/true")).last.failed
        assert failed.kind == exec_pb2.ExecFailure.KIND_RESOURCE_LIMIT
        other = tools.call("bash", context_id="other", command="echo new")
        assert other.is_error
        assert "bash cannot be started" in other.content[0].text
        searched = tools.call("grep", pattern="x")
        assert searched.is_error
        assert searched.content[0].text == "grep: the sandbox has no more threads"
        (group / "pids.max").write_text("max")
        assert tools.call("bash", context_id="other", command="echo new").content[0].text == "new"
        assert tools.bash("/bin/true; echo on") == "on"
        assert jobs.bash("echo on").text == "on\n"


def test_files_that_were_asked_for_while_the_table_was_full(
    crowded: tuple[Sandbox, Path],
) -> None:
    """Who tries again and again until there is room is served then, and nothing is done twice."""
    server, group = crowded
    with server.worker() as channel:
        files = FileCalls(channel)
        (server.workspace / "f").touch()
        (group / "pids.max").write_text((group / "pids.current").read_text())
        for _ in range(200):
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OUT_OF_RESOURCES"):
                files.stat("f")
        with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="OUT_OF_RESOURCES"):
            files.move("f", "moved")
        (group / "pids.max").write_text("max")
        assert files.stat("f").path.endswith("/f")
        assert [each.name for each in server.workspace.iterdir()] == ["f"]


async def test_a_process_that_the_kernel_ends_for_want_of_memory(
    memory_group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = memory_group / "memory.limit_in_bytes"
    limit = old if old.exists() else memory_group / "memory.max"
    limit.write_text(str(64 * MIB))
    counters = [memory_group / "memory.events", memory_group / "memory.oom_control"]
    monkeypatch.setattr(jobs_module, "OOM_COUNTERS", [str(each) for each in counters])
    before = oom_kills()
    job = Job("hungry", b"", ("hungry",), Policy())
    assert reason_of(job, -signal.SIGKILL, before) is Reason.EXITED
    code = f"""
open({str(memory_group / "cgroup.procs")!r}, "w").write("0")
bytearray(b"x") * {256 * MIB}
"""
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert reason_of(job, ended.returncode, before) is Reason.OOM_KILLED
    job.store.close()


def test_the_server_outlives_what_the_kernel_ends_for_want_of_memory(
    tmp_path: Path, memory_group: Path
) -> None:
    old = memory_group / "memory.limit_in_bytes"
    (old if old.exists() else memory_group / "memory.max").write_text(str(256 * MIB))
    # As in a container, the server's own group is what it sees of all groups.
    enter = f"echo $$ >{memory_group}/cgroup.procs && mount --bind {memory_group} "
    enter += f'{memory_group.parent} && exec "$@"'
    hungry = f"x = bytearray(b'x') * {1024 * MIB}"
    launcher = ("unshare", "--mount", "/bin/sh", "-c", enter, "-")
    with sandbox(tmp_path, launcher=launcher) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            tools, jobs = Tools(channel), Jobs(channel)
            ended = jobs.program("python3", "-c", hungry).exited
            assert ended.reason == exec_pb2.ExitInfo.REASON_OOM_KILLED
            assert ended.signal == signal.SIGKILL
            tools.bash("x=kept")
            result = tools.call("bash", command=f'python3 -c "{hungry}"')
            assert result.exit.code == 128 + signal.SIGKILL
            assert "Killed" in result.content[0].text
            assert tools.bash("echo $x") == "kept"


def test_a_full_disk_is_told_and_outlived(tmp_path: Path) -> None:
    small = "mount -t tmpfs -o size=1m tmpfs"
    enter = f'{small} {tmp_path}/workspace && {small} {tmp_path}/home && exec "$@"'
    launcher = ("unshare", "--mount", "/bin/sh", "-c", enter, "-")
    state = {"CLOISTER_STATE_DIR": str(tmp_path / "home" / "state")}
    with sandbox(tmp_path, launcher=launcher, env=state) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        home = Path(f"/proc/{server.process.pid}/root{tmp_path}/home")
        with server.worker() as channel:
            tools, files = Tools(channel), FileCalls(channel)
            tools.call("write", file_path="kept", content="as it was")
            refusal = tools.call("write", file_path="kept", content="x" * 2 * MIB)
            assert "no space left on device" in refusal.content[0].text
            with refused(grpc.StatusCode.RESOURCE_EXHAUSTED):
                files.upload("new", b"x" * 2 * MIB)
            assert tools.bash("ls -A; cat kept") == "kept\nas it was"
            full = tools.call("bash", command=f"head -c {2 * MIB} /dev/zero >{tmp_path}/home/fill")
            assert "No space left on device" in full.content[0].text
            assert tools.call("bash", command="echo much; : " + "x" * 9000).is_error
            # The last command may have given a page back.
            with contextlib.suppress(OSError), (home / "fill").open("ab", buffering=0) as file:
                while file.write(b"\0"):
                    pass
            assert tools.call("bash", context_id="new", command="echo new").is_error
            assert tools.call("read", file_path="kept").content[0].text.endswith("as it was")
            jobs = Jobs(channel)
            assert jobs.bash(f"rm {tmp_path}/home/fill; echo on").text == "on\n"
            assert tools.bash("echo on") == "on"
            assert tools.call("bash", context_id="new", command="echo new").content[0].text == "new"


def test_a_disk_without_room_for_names_is_told_and_outlived(tmp_path: Path) -> None:
    small = "mount -t tmpfs -o nr_inodes=64 tmpfs"
    enter = f'{small} {tmp_path}/workspace && {small} {tmp_path}/home && exec "$@"'
    launcher = ("unshare", "--mount", "/bin/sh", "-c", enter, "-")
    state = {"CLOISTER_STATE_DIR": str(tmp_path / "home" / "state")}
    with sandbox(tmp_path, launcher=launcher, env=state) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        with server.worker() as channel:
            tools, files, jobs = Tools(channel), FileCalls(channel), Jobs(channel)
            tools.call("write", file_path="kept", content="as it was")
            fill = "for n in {1..100}; do : >$d/fill$n || break; done 2>/dev/null"
            tools.bash(f"for d in {tmp_path}/workspace {tmp_path}/home; do {fill}; done")
            refusal = tools.call("write", file_path="new", content="x")
            assert "no space left on device" in refusal.content[0].text
            for tree in (False, True):
                with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, reason="DISK_FULL"):
                    files.upload("more/new", b"\0" * 1024, tree=tree)
            assert tools.call("bash", context_id="new", command="echo new").is_error
            assert tools.call("read", file_path="kept").content[0].text.endswith("as it was")
            assert jobs.bash(f"rm {tmp_path}/{{workspace,home}}/fill*; echo on").text == "on\n"
            assert tools.bash("echo on") == "on"
            assert tools.call("bash", context_id="new", command="echo new").content[0].text == "new"
            files.upload("more/new", b"x")
            assert tools.bash("cat more/new; ls -A") == "xkept\nmore"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (OSError(errno.ENOSPC, "secret"), grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL"),
        (OSError(errno.EDQUOT, "secret"), grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL"),
        (OSError(errno.EMFILE, "secret"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_RESOURCES"),
        (OSError(errno.ENFILE, "secret"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_RESOURCES"),
        (BlockingIOError(errno.EAGAIN, "x"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_RES"),
        (OSError(errno.ENOMEM, "secret"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_RESOURCES"),
        (MemoryError(), grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF_RESOURCES"),
        (RuntimeError("can't start new thread"), grpc.StatusCode.RESOURCE_EXHAUSTED, "OUT_OF"),
        (OSError(errno.EIO, "secret"), grpc.StatusCode.INTERNAL, "UNFORESEEN"),
        (KeyError("secret"), grpc.StatusCode.INTERNAL, "UNFORESEEN"),
    ],
)
async def test_what_no_handler_foresaw_becomes_a_status(
    error: Exception, code: grpc.StatusCode, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Call:
        details = b""

        def set_trailing_metadata(self, metadata: Any) -> None:
            self.details = dict(metadata)["grpc-status-details-bin"]

        async def abort(self, code: grpc.StatusCode, message: str) -> None:
            self.said = (code, message)

    async def handler(*_: Any) -> None:
        raise error

    call = Call()
    with caplog.at_level(logging.DEBUG):
        await unary(handler)(None, None, call)
    assert call.said[0] is code
    assert reason.encode() in call.details
    assert (b"RetryInfo" in call.details) == (code is grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert "secret" not in caplog.text + call.said[1]


def test_a_failure_names_its_place_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    try:
        Path("/no/such/secret").read_bytes()
    except OSError as error:
        unforeseen("Stat", error)
    assert "Stat: FileNotFoundError in pathlib.py, line" in caplog.text
    assert "secret" not in caplog.text


def test_arguments_beyond_the_kernels_bound(claimed: Sandbox) -> None:
    with claimed.worker() as channel:
        jobs = Jobs(channel)
        failed = read(jobs.start("/bin/echo", "x" * (3 * MIB))).last.failed
        assert failed.kind == exec_pb2.ExecFailure.KIND_BAD_ARGUMENTS
        assert failed.errno == errno.E2BIG
        assert jobs.bash("echo on").text == "on\n"


def test_what_is_not_kept_of_a_programs_output_is_told(claimed: Sandbox) -> None:
    with claimed.worker() as channel:
        bounds = exec_pb2.OutputPolicy(head_bytes=100, tail_bytes=100, spool_bytes=1000)
        jobs = Jobs(channel)
        seen = read(
            jobs.start("head", "-c", "5000000", "/dev/zero", process_id="lossy", output=bounds)
        )
        assert seen.exited.code == 0
        info = jobs.listed()["lossy"].exit
        assert info.truncation.total_bytes == 5_000_000
        assert info.truncation.omitted_bytes == 5_000_000 - 1200
        assert info.truncation.spool_path == ""
        assert not read(jobs.start("echo", "whole")).exited.HasField("truncation")


async def written(overflow: Overflow, *parts: bytes) -> None:
    for each in parts:
        overflow.add(each)
    await overflow.written()


async def test_long_outputs_are_kept_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister_sandbox.overflow.TOTAL_BYTES", 250)
    overflows = Overflows(str(tmp_path))
    files = [overflows.new("a" if number else "b") for number in range(3)]
    assert list(tmp_path.iterdir()) == []

    def there() -> list[bool]:
        return [Path(each.path).exists() for each in files]

    for each in files:
        await written(each, b"x" * 60, b"y" * 40)
        overflows.trim()
    await until(lambda: there() == [False, True, True])
    assert Path(files[1].path).read_bytes() == b"x" * 60 + b"y" * 40
    assert os.stat(overflows.directory).st_mode & 0o777 == 0o700  # noqa: PTH116
    overflows.forget("b")
    assert Path(files[2].path).exists()
    overflows.forget("a")
    await until(lambda: not any(Path(overflows.directory).iterdir()))
    overflows.close()
    await until(lambda: not any(tmp_path.iterdir()))


async def test_long_outputs_go_nowhere_that_a_tool_chose(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    overflows = Overflows(str(tmp_path))
    Path(overflows.directory).symlink_to(elsewhere)
    refused = overflows.new("a")
    await written(refused, b"x" * 100)
    assert (refused.size, list(elsewhere.iterdir())) == (0, [])
    Path(overflows.directory).unlink()
    first = overflows.new("a")
    await written(first, b"x")
    # A tool takes the directory away, and puts a link in its place.
    Path(overflows.directory).rename(tmp_path / "moved")
    Path(overflows.directory).symlink_to(elsewhere)
    await written(overflows.new("a"), b"x")
    assert list(elsewhere.iterdir()) == []
    overflows.close()


async def test_a_full_disk_costs_a_long_output_its_file_only() -> None:
    overflow = Overflow("/nowhere", lambda: os.open("/dev/full", os.O_RDWR))
    await written(overflow, b"x" * 100)
    assert overflow.size == 0
    await written(overflow, b"x" * 100)
    overflow.close()


def test_a_closed_context_takes_its_long_outputs_along(tools: Tools) -> None:
    result = tools.call("bash", context_id="long", command="seq 100000")
    path = result.truncation.spool_path
    whole = "".join(f"{number}\n" for number in range(1, 100_001))
    assert Path(path).read_text() == whole
    denied = tools.call("write", context_id="long", file_path=path, content="x")
    assert "inside read-only directory" in denied.content[0].text
    tools.stub.CloseContext(exec_pb2.CloseContextRequest(context_id="long"), timeout=20)
    eventually(lambda: not Path(path).exists())
