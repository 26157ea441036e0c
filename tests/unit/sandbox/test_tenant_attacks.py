"""What code in the pod, and a worker that means harm, try against the exec server.

The server is PID 1 of a PID namespace, as in a pod, and without any privilege.
"""

import asyncio
import contextlib
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import struct_pb2

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox import kin
from cloister_sandbox.calls import Calls
from cloister_sandbox.errors import Busy
from cloister_sandbox.guard import STOP
from cloister_sandbox.processes import Reaper
from cloister_sandbox.replays import Replays
from cloister_sandbox.services import tools as tools_service
from cloister_sandbox.toolset.patterns import BadPattern, Pattern
from cloister_sandbox.toolset.results import ToolResult
from support.jobs import Jobs, read
from support.pods import claimed_pod
from support.reaping import EndlessEnds, no_ends
from support.sandbox_server import Sandbox, Tools

pytestmark = pytest.mark.long

MIB = 1024 * 1024

READS_THE_SERVER = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
class Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))
mine = Vector(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
theirs = Vector(0x400000, 8)
handle = os.pidfd_open(1)
tries = {
    "attach": libc.ptrace(16, 1, 0, 0),
    "seize": libc.ptrace(0x4206, 1, 0, 0),
    "readv": libc.process_vm_readv(1, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0),
    "writev": libc.process_vm_writev(1, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0),
    "descriptor": libc.syscall(438, handle, 3, 0),
    "advise": libc.syscall(440, handle, ctypes.byref(theirs), 1, 4, 0),
    "namespace": libc.setns(handle, 0x20000),
}
names = "environ maps mem auxv smaps pagemap syscall stack io fdinfo timers task/1/mem".split()
for name in [*names, "exe", "cwd", "root", "fd/3", "map_files/400000-401000"]:
    try:
        with open(f"/proc/1/{name}", "rb") as file:
            tries[name] = len(file.read(1))
    except OSError:
        tries[name] = -1
print(*sorted(name for name, result in tries.items() if result >= 0))
"""

NAMES_AN_OWNER = """
import contextlib, fcntl, os, socket
SET_SIGNAL = 10
refused = []
for number in range(65):
    for owner in (1, -1):
        near, far = socket.socketpair()
        fcntl.fcntl(near, fcntl.F_SETOWN, owner)
        try:
            fcntl.fcntl(near, SET_SIGNAL, number)
        except PermissionError:
            refused.append(number)
            continue
        fcntl.fcntl(near, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        far.send(b"x")
        far.close()
print(sorted(set(refused)))
"""
HOLDS_A_LEASE = """
import fcntl, signal
signal.signal(signal.SIGIO, lambda *_: None)
file = open("leased", "r+b")
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
open("held", "w").close()
while True:
    signal.pause()
"""


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with claimed_pod(tmp_path_factory.mktemp("pod"), STOP) as server:
        yield server


@pytest.fixture
def tools(pod: Sandbox) -> Iterator[Tools]:
    with pod.worker() as channel:
        yield Tools(channel)


def test_nothing_of_the_servers_memory_or_descriptors_can_be_had(tools: Tools) -> None:
    tools.call("write", file_path="reads.py", content=READS_THE_SERVER)
    assert tools.bash("python3 reads.py") == "(no output)"
    assert tools.bash("cut -d ' ' -f 1,2 /proc/1/stat").startswith("1 (python")


def test_no_signal_from_within_ends_the_server(tools: Tools) -> None:
    boot = tools.bash("cut -d ' ' -f 22 /proc/1/stat")
    tools.bash("for n in $(seq 64); do kill -$n 1; done 2>/dev/null")
    assert tools.bash("cut -d ' ' -f 22 /proc/1/stat") == boot


def test_no_signal_that_the_kernel_sends_for_a_descriptor_ends_the_server(tools: Tools) -> None:
    boot = tools.bash("cut -d ' ' -f 22 /proc/1/stat")
    tools.call("write", file_path="owner.py", content=NAMES_AN_OWNER)
    assert tools.bash("python3 owner.py") == f"[{STOP}]"
    assert tools.bash("cut -d ' ' -f 22 /proc/1/stat", context_id="another") == boot


def test_tools_inherit_no_descriptor_of_the_server(tools: Tools) -> None:
    script = "import os; print(sorted(set(os.listdir('/proc/self/fd')) - {'0', '1', '2', '3'}))"
    assert tools.bash(f'python3 -c "{script}"') == "[]"
    # bash itself has two, by which it is told what to run, and tells how that ended.
    assert "socket:" not in tools.bash("ls -l /proc/self/fd")
    assert tools.bash("ls -l /proc/$$/fd | grep -c socket:") == "2"


def test_who_never_finishes_a_handshake_is_cut_off(pod: Sandbox, tools: Tools) -> None:
    with contextlib.ExitStack() as held:
        silent = [
            held.enter_context(socket.create_connection(("127.0.0.1", pod.port), timeout=40))
            for _ in range(50)
        ]
        for each in silent:
            each.sendall(b"\x16\x03\x01\x02\x00")
        assert tools.bash("echo on") == "on"
        for each in silent:
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(1) == b""


def test_changes_without_end_hold_up_no_other_call(pod: Sandbox, tools: Tools) -> None:
    write = (
        "import os, time\n"
        "files = [os.open(f'storm/{name}', os.O_RDWR | os.O_CREAT) for name in 'ab']\n"
        "while os.path.exists('storm/a'):\n"
        "    for _ in range(1000):\n"
        "        for file in files: os.pwrite(file, b'x', 0)\n"
    )
    (pod.workspace / "storm").mkdir()
    (pod.workspace / "storm" / "a").touch()
    tools.call("write", file_path="storm.py", content=write)
    with pod.worker() as channel:
        files = exec_pb2_grpc.FilesStub(channel)
        watches = [files.Watch(exec_pb2.WatchRequest(path="storm")) for _ in range(6)]
        for each in watches:
            assert next(each).type == exec_pb2.WatchEvent.TYPE_READY
        tools.bash("python3 storm.py >/dev/null 2>&1 &")
        for each in watches:
            assert next(each).path
        for _ in range(3):
            result = files.Glob(exec_pb2.GlobRequest(path="storm", pattern="*"), timeout=20)
            assert result.total_matches == 2
        tools.bash("rm storm/a")
        for each in watches:
            each.cancel()


def test_a_directory_deeper_than_the_stack_ends_with_its_context(
    pod: Sandbox, tools: Tools
) -> None:
    command = (
        'cd "$(dirname "$(readlink /proc/self/fd/2)")" && pwd && '
        "for i in $(seq 30); do p=$(printf 'a/%.0s' $(seq 40)); mkdir -p $p; cd $p; done"
    )
    where = tools.call("bash", context_id="deep", command=command).content[0].text
    assert Path(where).parent == Path(pod.env["CLOISTER_STATE_DIR"])
    request = exec_pb2.CloseContextRequest(context_id="deep")
    tools.stub.CloseContext(request, timeout=30)
    tools.bash(f"rm -rf {where}")
    assert not Path(where).exists()


def test_a_link_in_place_of_the_outputs_makes_nothing_read_only(pod: Sandbox, tools: Tools) -> None:
    path = tools.call("bash", command="seq 100000").truncation.spool_path
    kept = Path(path).parent
    tools.bash(f"mv {kept} {kept}-moved; ln -s {pod.workspace} {kept}")
    try:
        wrote = tools.call("write", context_id="next", file_path="f", content="x")
        assert not wrote.is_error, wrote.content[0].text
    finally:
        tools.bash(f"rm {kept}; mv {kept}-moved {kept}")


def test_nobody_waits_for_a_tool_that_holds_a_lease(pod: Sandbox, tools: Tools) -> None:
    (pod.workspace / "leased").write_text("text")
    tools.call("write", file_path="lease.py", content=HOLDS_A_LEASE)
    tools.bash("mkfifo held; python3 lease.py >/dev/null 2>&1 & read < held; :")
    try:
        read = tools.call("read", context_id="other", file_path="leased")
        write = tools.call("write", context_id="other", file_path="leased", content="x")
        for tool, result in (("read", read), ("write", write)):
            assert result.content[0].text == f"{tool}: leased: resource temporarily unavailable"
    finally:
        tools.bash("kill %1; rm -f leased held")
    assert pod.process.poll() is None


def test_long_searches_hold_up_no_shell(pod: Sandbox, tools: Tools) -> None:
    deep = "".join(f"{'a' * 20}/" for _ in range(60))
    tools.bash(f"mkdir deep; cd deep; for i in $(seq 8); do mkdir -p {deep}; cd {deep}; done")
    tools.bash(f"cd {pod.workspace}")
    pattern = "**/" + "/".join(["*a*a"] * 600) + "/q"
    begun = []
    for number in range(8):
        request = exec_pb2.CallRequest(request_id=uuid.uuid4().hex, tool="glob")
        request.context_id = f"glob-{number}"
        request.budget.FromMilliseconds(500)
        request.input.update({"pattern": pattern})
        begun.append(tools.stub.Call(request, timeout=60))
    assert tools.call("bash", context_id="fresh", command="echo on").content[0].text == "on"
    for call in begun:
        *_, last = call
        assert last.result.is_error
        assert "time" in last.result.content[0].text
    with pytest.raises(BadPattern):
        Pattern("{" + ",".join("ab" * 32) + "}" + "c" * 3000)


def test_long_command_lines_are_not_kept(pod: Sandbox) -> None:
    with pod.worker() as channel:
        jobs = Jobs(channel)
        for number in range(12):
            read(jobs.start("/bin/true", "x" * (4 * MIB), process_id=f"long-{number}"))
        jobs.program("/bin/echo", "ä" * 20_000, "y", process_id="cut")
        listed = jobs.processes.List(exec_pb2.ListProcessesRequest(), timeout=30)
        assert listed.ByteSize() < MIB
        argv = jobs.listed()["cut"].argv
        assert argv[0] == "/bin/echo"
        assert argv[1].endswith("ä...")
        assert len(argv) == 2


def test_what_no_tool_takes_is_not_converted() -> None:
    value = struct_pb2.Value()
    inner = value.list_value.values.add().list_value
    inner.values.add()
    for _ in range(1000):
        value.list_value.values.add(number_value=1)
    found = tools_service._plain(value)
    assert found[0] == {}
    assert len(found) == tools_service.MAX_LIST + 1
    value.struct_value.update({"a": "b"})
    assert tools_service._plain(value) == {}


async def test_large_inputs_that_wait_are_bounded() -> None:
    calls = Calls()
    release = asyncio.Event()

    async def work(_: object) -> ToolResult:
        await release.wait()
        return ToolResult("done")

    payload = b"x" * (30 * MIB)
    begun = [calls.start(f"{number}", payload, work)[0] for number in range(4)]
    with pytest.raises(Busy):
        calls.start("one-more", payload, work)
    small, _ = calls.start("small", b"x", work)
    release.set()
    for each in (*begun, small):
        assert await each.ended(20)
    calls.start("one-more", payload, work)
    await calls.settle(20)


async def test_repeated_edits_keep_no_payload() -> None:
    kept: Replays[int] = Replays()

    async def work() -> int:
        return 1

    assert await kept.run("id", b"x" * 100_000, work) == 1
    assert len(repr(kept._kept)) < 10_000


async def test_processes_that_end_without_end_leave_time_for_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends = EndlessEnds()
    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", ends.wait4)
    Reaper().reap()
    seen = ends.told
    await asyncio.sleep(0)
    assert ends.told > seen, "it goes on"
    monkeypatch.setattr("cloister_sandbox.processes.os.wait4", no_ends)


async def test_no_descriptor_left_to_look_processes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[object] = [OSError(24, "too many"), [7], []]

    def strike(*_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(kin, "_strike", strike)
    assert await kin.kill_tree(-1, "mark") == []
    assert answers == []
