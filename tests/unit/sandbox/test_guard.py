"""What tools try against a server of their own user: its limits, and the kubelet's signal.

The server is PID 1 of a PID namespace, as in a pod, and without any privilege.
"""

import errno
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cloister_sandbox.guard import _AARCH64, _ARM, _I386, _X86_64, STOP, program
from support.jobs import Jobs
from support.pods import claimed_pod
from support.sandbox_server import Sandbox, Tools, refused

TAKES_LIMITS = """
import os, resource
tasks = [int(each) for each in os.listdir("/proc/1/task")]
assert len(tasks) > 2
for task in tasks:
    for which in range(16):
        try:
            resource.prlimit(task, which, (0, 0))
            print(task, which)
        except PermissionError:
            resource.prlimit(task, which)
resource.prlimit(0, resource.RLIMIT_NOFILE, (64, 64))
print(resource.prlimit(0, resource.RLIMIT_NOFILE))
"""
SENDS_STOP = """
import ctypes, fcntl, os, signal, struct, sys
STOP = 37
libc = ctypes.CDLL(None, use_errno=True)
call = libc.syscall
info = struct.pack("@iii", STOP, 0, -1).ljust(128, b"\\0")
tasks = [int(each) for each in os.listdir("/proc/1/task")]
handle, directory = os.pidfd_open(1), os.open("/proc/1", os.O_RDONLY)
for task in tasks:
    tries = {
        "kill": lambda: libc.kill(task, STOP),
        "tkill": lambda: call(200, task, STOP),
        "tgkill": lambda: call(234, 1, task, STOP),
        "queue": lambda: call(129, task, STOP, info),
        "tgqueue": lambda: call(297, 1, task, STOP, info),
        "handle": lambda: call(424, handle, STOP, None, 0),
        "directory": lambda: call(424, directory, STOP, None, 0),
        "owner": lambda: libc.fcntl(handle, 10, STOP),
    }
    for name, attempt in tries.items():
        if attempt() != -1 or ctypes.get_errno() != 1:
            print(name, task)
print(libc.kill(os.getpid(), 0))
"""
PINGS = """
import errno, socket
for family, protocol in ((socket.AF_INET, 1), (socket.AF_INET6, 58)):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC):
        try:
            socket.socket(family, kind, protocol)
            print(family, kind)
        except OSError as error:
            # Where the kernel itself refuses, it says EACCES, or that it has no such protocol.
            print(errno.errorcode[error.errno])
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 17)
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM, 1)
"""
OTHER_SOCKETS = """
import errno, socket
unknown = (2, 5, 132), (2, 1, 132), (2, 2, 136), (2, 6, 33), (2, 1, 256), (2, 3, 255)
for family, kind, protocol in (*unknown, *((each, 2, 0) for each in (17, 30, 38, 40, 43))):
    try:
        socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        print("opened", family, kind, protocol)
    except OSError as error:
        print(errno.errorcode[error.errno])
for family, kind, protocol in ((2, 1, 0), (2, 1, 6), (2, 2, 0), (2, 2, 17), (1, 5, 0), (16, 3, 0)):
    socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
"""
TAKES_ADDRESSES = """
import errno, socket
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for level, option in ((0, 15), (41, 78)):
    try:
        held.setsockopt(level, option, 1)
        print("set", level, option)
    except OSError as error:
        print(errno.errorcode[error.errno])
held.setsockopt(socket.SOL_SOCKET, 15, 1)  # SO_REUSEPORT has the same number on another level
held.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
"""
SETS_UP_RINGS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(425, 4, ctypes.create_string_buffer(120)), ctypes.get_errno())
"""
TAKES_REQUESTS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": 206, "aarch64": 0}[os.uname().machine]
print(libc.syscall(number, 1, ctypes.byref(ctypes.c_ulong())), ctypes.get_errno())
"""
FLOODS = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    os.kill(1, signal.SIGTERM)
    os.kill(1, signal.SIGINT)
"""
FILLS_THE_QUEUE = """
import os, resource, signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [50])
for _ in range(resource.getrlimit(resource.RLIMIT_SIGPENDING)[0] + 10):
    try:
        os.kill(os.getpid(), 50)
    except BlockingIOError:
        break
print("full", flush=True)
time.sleep(600)
"""
SENDS_WITHOUT_A_NAME = """
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": (129, 234), "aarch64": (138, 131)}[os.uname().machine]
for each in (signal.SIGTERM, signal.SIGINT):
    info = struct.pack("@iii", each, 0, -1).ljust(128, b"\\0")
    print(libc.syscall(number[0], 1, each, info), libc.syscall(number[1], 1, 1, each))
"""
CALLS_AS_X32 = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(0x40000000 + 62, 1, 37), ctypes.get_errno())
"""


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with claimed_pod(tmp_path_factory.mktemp("pod"), STOP) as server:
        yield server


@pytest.fixture
def tools(pod: Sandbox) -> Iterator[Tools]:
    with pod.worker() as channel:
        yield Tools(channel)


def run(tools: Tools, content: str) -> str:
    """What a Python script says as a tool."""
    tools.call("write", file_path="script.py", content=content)
    return tools.bash(f"{sys.executable} script.py")


def test_no_tool_sets_a_limit_of_the_server(tools: Tools) -> None:
    assert run(tools, TAKES_LIMITS) == "(64, 64)"
    assert tools.bash("(ulimit -n 32; ulimit -n)") == "32"


def test_no_tool_sends_what_ends_the_pod(tools: Tools) -> None:
    assert run(tools, SENDS_STOP) == "0"


def test_there_is_no_ipv6_where_pods_have_no_address_of_it(tools: Tools) -> None:
    command = "import socket; socket.socket(socket.AF_INET6)"
    assert "Address family not supported" in tools.bash(f"{sys.executable} -c '{command}' 2>&1")


def test_no_tool_pings(tools: Tools) -> None:
    refused = ["EPERM"] * 3 + ["EAFNOSUPPORT"] * 3
    assert tools.bash(f"{sys.executable} -c '{PINGS}'").split() == refused


def test_no_tool_has_sockets_that_policies_do_not_know(tools: Tools) -> None:
    refused = ["EPERM"] * 6 + ["EAFNOSUPPORT"] * 5
    assert run(tools, OTHER_SOCKETS).split() == refused


def test_no_tool_opens_sockets_past_the_filter(tools: Tools) -> None:
    assert run(tools, SETS_UP_RINGS) == "-1 38"


def test_no_tool_takes_the_nodes_requests_of_asynchronous_io(tools: Tools) -> None:
    assert run(tools, TAKES_REQUESTS) == "-1 38"
    for kind, number in ((_X86_64, 206), (_I386, 245), (_AARCH64, 0), (_ARM, 243)):
        made = program((kind,))
        assert answer(made, kind.architecture, number, (65_536,)) == errno.ENOSYS
        assert answer(made, kind.architecture, number + 1, (0,)) == 0


def test_no_tool_sends_under_an_address_that_is_not_the_pods(tools: Tools) -> None:
    assert run(tools, TAKES_ADDRESSES).split() == ["EPERM", "EPERM"]
    for kind in (_X86_64, _I386, _AARCH64, _ARM):
        made = program((kind,))
        assert answer(made, kind.architecture, kind.set_option, (3, 41, 78)) == errno.EPERM
        assert answer(made, kind.architecture, kind.set_option, (3, 41, 26)) == 0


def test_programs_of_32_bits_open_no_sockets_by_a_call_that_hides_them() -> None:
    old_way = 102
    for kinds in ((_X86_64, _I386), (_AARCH64, _ARM)):
        assert answer(program(kinds), kinds[1].architecture, old_way, (1, 0)) == errno.ENOSYS
        allowed = answer(program(kinds), kinds[1].architecture, kinds[1].socket, (2, 1, 0))
        assert allowed == 0


def answer(filter_: bytes, architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """The error that a filter gives for a call, 0 where it allows it: its steps as the kernel
    takes them (linux/filter.h).
    """
    steps = list(struct.iter_unpack("<HBBI", filter_))
    filled = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *filled)
    at = held = 0
    while True:
        code, yes, no, value = steps[at]
        at += 1
        if code == 0x06:
            return 0 if value == 0x7FFF_0000 else value & 0xFFFF
        if code == 0x20:
            (held,) = struct.unpack_from("<I", data, value)
        elif code == 0x54:
            held &= value
        else:
            at += yes if (held == value if code == 0x15 else held >= value) else no


def test_there_is_no_other_way_to_call(tools: Tools) -> None:
    assert run(tools, CALLS_AS_X32) == "-1 38"


def test_a_client_is_told_that_nobody_is_sent_that_signal(pod: Sandbox) -> None:
    with pod.worker() as channel:
        jobs = Jobs(channel)
        jobs.start("/bin/sleep", "600", process_id="sleeps")
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "signal", "INVALID_FIELD"):
            jobs.signal("sleeps", STOP)
        jobs.signal("sleeps", signal.SIGKILL)


def test_the_kubelet_is_heard_through_a_flood(tmp_path: Path) -> None:
    few = ("prlimit", "--sigpending=200")
    with claimed_pod(tmp_path, STOP, before=few) as server, server.worker() as channel:
        tools = Tools(channel)
        for name, content in (("fills.py", FILLS_THE_QUEUE), ("floods.py", FLOODS)):
            tools.call("write", file_path=name, content=content)
            tools.bash(
                f"mkfifo {name}-on; {sys.executable} {name} >{name}-on 2>&1 & read < {name}-on"
            )
        # The kernel has no room left to say who sends a signal.
        waiting, bound = tools.bash("grep SigQ /proc/1/status").split()[1].split("/")
        # All of a user's count, and those of other programs than these come and go.
        assert int(bound) == 200
        assert int(waiting) >= 195


def test_who_has_the_kernel_forget_the_sender_ends_no_server(tmp_path: Path) -> None:
    few = ("prlimit", "--sigpending=200")
    with claimed_pod(tmp_path, STOP, before=few) as server, server.worker() as channel:
        tools = Tools(channel)
        tools.call("write", file_path="fills.py", content=FILLS_THE_QUEUE)
        tools.bash(f"mkfifo on; {sys.executable} fills.py >on 2>&1 & read < on")
        assert run(tools, SENDS_WITHOUT_A_NAME).split() == ["0"] * 4
        assert tools.bash("echo on", context_id="another") == "on"
        assert server.process.poll() is None


def test_the_image_asks_for_the_signal_that_is_guarded() -> None:
    recipe = Path(__file__).parents[3] / "sandbox-image" / "Dockerfile"
    assert f"\nSTOPSIGNAL {STOP}\n" in recipe.read_text()
    assert STOP == signal.SIGRTMIN + 3
