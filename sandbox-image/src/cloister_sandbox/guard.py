"""What tools may not do although the kernel would let them: a seccomp filter that they inherit.

Two things to the server, which shares its user with them:

- Send STOP, the signal by which the kubelet ends the pod. So nothing of a tool's can wait in its
  place, and whoever receives it knows that it came from outside the pod.
- Set a limit of another process: a server that may open no file, or take no memory, has ended.

And one to the network: open a socket that policies say nothing about. They name TCP, UDP and SCTP;
engines let ICMP pass, or leave it open, and gVisor gives sockets for pings to everybody. Sockets to
the hypervisor, and of other families, are no network to them at all, and each family is code of the
kernel that nobody here needs. So tools have TCP and UDP over IP, Unix sockets and netlink. Rings of
calls (io_uring) are not there: they open sockets that no filter sees. Nor does a socket take an
address that is not the pod's: over IPv6 everybody may send under such a one (IP_FREEBIND), and
policies know pods by their addresses.

And one to the node: set up contexts of asynchronous I/O (io_setup). The kernel has so many requests
of them for all pods together (fs.aio-max-nr), and one call can take them all.

The filter looks at nothing but numbers in registers, which no other thread can change meanwhile,
and names no process: it cannot know which thread ids the server's threads will have. So tools
cannot do either to each other's processes. The server, which has the filter too, sets limits with a
word in a register that the call does not use. Tools cannot learn it: the kernel shows filters,
registers and memory of a process only to who may trace it, and nobody may trace the server.

Calls that are not named here cost next to nothing: the kernel remembers, per number, that they are
allowed.
"""

import ctypes
import errno
import itertools
import logging
import os
import resource
import secrets
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

STOP = 37
"""SIGRTMIN+3 where glibc and musl count alike, which is what other init programs end at."""
_SET_NO_NEW_PRIVILEGES = 38
_SET_MODE_FILTER = 1
_EVERY_THREAD, _ALLOW_SPECULATION = 1, 4
_SET_SIGNAL = 10
"""fcntl's F_SETSIG: the kernel sends the signal then, to whom the descriptor's owner names."""
_SECRET = secrets.randbits(64) | 1 << 63
"""Its upper half is not 0, so that no register of 32 bits holds it."""
_X32 = 0x4000_0000
"""The first number of the third way of calls that x86-64 kernels may have."""
_NUMBER, _ARCHITECTURE = 0, 4
"""Where a filter finds them (linux/seccomp.h)."""
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _REFUSE = 0x7FFF_0000, 0x0005_0000
_LOCAL = (socket.AF_UNIX, socket.AF_NETLINK)
_KIND = 0xF
"""Of a socket's type; the rest are flags."""
_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_PROTOCOLS = (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, 262)
"""The last one is MPTCP, which is TCP to all on the way."""
_FREE_BINDING = ((socket.IPPROTO_IP, 15), (socket.IPPROTO_IPV6, 78))
"""Options by which a socket takes an address that is not its own, each on its level."""
_libc = ctypes.CDLL(None, use_errno=True)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Calls:
    """The numbers of one architecture's calls."""

    architecture: int
    set_limit: int
    set_signal: tuple[int, ...]
    signal_second: tuple[int, ...]
    """Calls whose second argument is the signal to send."""
    signal_third: tuple[int, ...]
    socket: int
    set_option: int
    set_up_requests: int
    """io_setup(2)."""
    socket_call: int = -1
    """An older way to the same, whose arguments no filter sees; gVisor runs no such programs."""
    rings: int = 425
    """Sets up rings of calls; the same number everywhere."""


_X86_64 = _Calls(0xC000_003E, 302, (72,), (62, 200, 129, 424), (234, 297), 41, 54, 206)
_I386 = _Calls(0x4000_0003, 340, (55, 221), (37, 238, 178, 424), (270, 335), 359, 366, 245, 102)
_AARCH64 = _Calls(0xC000_00B7, 261, (25,), (129, 130, 138, 424), (131, 240), 198, 208, 0)
_ARM = _Calls(0x4000_0028, 369, (55, 221), (37, 238, 178, 424), (268, 363), 281, 294, 243, 102)
_MACHINES = {"x86_64": (317, (_X86_64, _I386)), "aarch64": (277, (_AARCH64, _ARM))}
"""The number of seccomp(2), and the ways in which programs of the machine may call."""
_MACHINE = _MACHINES.get(os.uname().machine)


class _Program:
    """Instructions of a filter, with jumps to names."""

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, str, str]] = []
        self._places: dict[str, int] = {}

    def place(self, name: str) -> None:
        """What follows can be jumped to."""
        self._places[name] = len(self._steps)

    def add(self, code: int, value: int, yes: str = "", no: str = "") -> None:
        """One instruction; without a name it goes on with the next."""
        self._steps.append((code, value, yes, no))

    def argument(self, number: int, half: int = 0) -> None:
        """Load half an argument; every architecture here has the lower half first."""
        self.add(_LOAD, 16 + 8 * number + 4 * half)

    def assembled(self) -> bytes:
        """As the kernel takes it."""
        return b"".join(
            struct.pack(
                "<HBBI",
                code,
                *(self._places[name] - at - 1 if name else 0 for name in (yes, no)),
                value,
            )
            for at, (code, value, yes, no) in enumerate(self._steps)
        )


def _begun(kinds: tuple[_Calls, ...]) -> _Program:
    """A filter that leads each architecture to its `calls`, by number, and no other anywhere."""
    built = _Program()
    built.add(_LOAD, _ARCHITECTURE)
    for number, kind in enumerate(kinds):
        built.add(_EQUAL, kind.architecture, f"calls{number}")
    built.add(_RETURN, _REFUSE | errno.ENOSYS)
    return built


def _finished(built: _Program) -> bytes:
    """The filter with its ends: `allow`, `refuse`, `absent` for no such family of sockets,
    `unknown` for no such call.
    """
    for name, answer in (
        ("allow", _ALLOW),
        ("refuse", _REFUSE | errno.EPERM),
        ("absent", _REFUSE | errno.EAFNOSUPPORT),
        ("unknown", _REFUSE | errno.ENOSYS),
    ):
        built.place(name)
        built.add(_RETURN, answer)
    return built.assembled()


def program(kinds: tuple[_Calls, ...]) -> bytes:
    """The filter for a machine whose programs may call in these ways."""
    built = _begun(kinds)
    for number, kind in enumerate(kinds):
        built.place(f"calls{number}")
        built.add(_LOAD, _NUMBER)
        if kind is _X86_64:
            built.add(_AT_LEAST, _X32, "unknown")
        absent = (kind.rings, kind.set_up_requests)
        rules = (
            ("fcntl", kind.set_signal),
            ("second", kind.signal_second),
            ("third", kind.signal_third),
            ("limit", (kind.set_limit,)),
            ("socket", (kind.socket,)),
            ("option", (kind.set_option,)),
            ("unknown", (*absent, *((kind.socket_call,) if kind.socket_call >= 0 else ()))),
        )
        for rule, call in itertools.chain.from_iterable(
            ((rule, call) for call in calls) for rule, calls in rules
        ):
            built.add(_EQUAL, call, rule)
        built.add(_RETURN, _ALLOW)
    built.place("fcntl")
    built.argument(1)
    built.add(_EQUAL, _SET_SIGNAL, "third", "allow")
    built.place("second")
    built.argument(1)
    built.add(_EQUAL, STOP, "refuse", "allow")
    built.place("third")
    built.argument(2)
    built.add(_EQUAL, STOP, "refuse", "allow")
    built.place("socket")
    built.argument(0)
    for family in _LOCAL:
        built.add(_EQUAL, family, "allow")
    built.add(_EQUAL, socket.AF_INET, "internet")
    built.add(_EQUAL, socket.AF_INET6, "internet", "absent")
    built.place("internet")
    built.argument(1)
    built.add(_AND, _KIND)
    for shape in _KINDS:
        built.add(_EQUAL, shape, "protocol")
    built.add(_RETURN, _REFUSE | errno.EPERM)
    built.place("protocol")
    built.argument(2)
    for protocol in _PROTOCOLS:
        built.add(_EQUAL, protocol, "allow")
    built.add(_RETURN, _REFUSE | errno.EPERM)
    built.place("option")
    built.argument(1)
    for level, _ in _FREE_BINDING:
        built.add(_EQUAL, level, f"level{level}")
    built.add(_RETURN, _ALLOW)
    for level, option in _FREE_BINDING:
        built.place(f"level{level}")
        built.argument(2)
        built.add(_EQUAL, option, "refuse", "allow")
    built.place("limit")
    built.argument(0)  # 0 is the caller itself
    built.add(_EQUAL, 0, "allow")
    built.argument(2)  # no new limits: it only looks
    built.add(_EQUAL, 0, "", "sets")
    built.argument(2, 1)
    built.add(_EQUAL, 0, "allow")
    built.place("sets")
    built.argument(5)
    built.add(_EQUAL, _SECRET & 0xFFFF_FFFF, "", "refuse")
    built.argument(5, 1)
    built.add(_EQUAL, _SECRET >> 32, "allow", "refuse")
    return _finished(built)


def without_ipv6(kinds: tuple[_Calls, ...]) -> bytes:
    """A filter by which there is no IPv6, as on a machine that has none.

    Policy engines that know IPv4 alone leave the link-local addresses of pods and nodes open.
    """
    built = _begun(kinds)
    for number, kind in enumerate(kinds):
        built.place(f"calls{number}")
        built.add(_LOAD, _NUMBER)
        built.add(_EQUAL, kind.socket, "socket")
        built.add(_RETURN, _ALLOW)
    built.place("socket")
    built.argument(0)
    built.add(_EQUAL, socket.AF_INET6, "absent", "allow")
    return _finished(built)


def install() -> bool:
    """Put this process, and all that it starts, behind the filter; says whether that succeeded.

    Without it the server serves all the same: what tools can do to it then harms their own pod
    alone, and the network is closed by policies first.
    """
    if _put(program):
        return True
    log.warning(
        "the kernel takes no filter of calls: tools can end this server, and have all sockets"
    )
    return False


def close_ipv6() -> bool:
    """Let nothing that is started from now on open an IPv6 socket; says whether that succeeded."""
    if _put(without_ipv6):
        return True
    log.warning("the kernel takes no filter of calls: tools have IPv6 where the pod has it")
    return False


def _put(made: Callable[[tuple[_Calls, ...]], bytes]) -> bool:
    if _MACHINE is not None:
        call, kinds = _MACHINE
        instructions = made(kinds)
        kept = ctypes.create_string_buffer(instructions, len(instructions))
        whole = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(kept))
        # Only who cannot gain privileges any more may install a filter.
        _libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        # gVisor does not know the second flag.
        for flags in (_EVERY_THREAD | _ALLOW_SPECULATION, _EVERY_THREAD):
            if _libc.syscall(call, _SET_MODE_FILTER, flags, whole) == 0:
                return True
    return False


def set_limit(pid: int, which: int, value: int) -> None:
    """Set both limits of a process; raises OSError."""
    if _MACHINE is None:
        resource.prlimit(pid, which, (value, value))
        return
    # Every argument fills a register: of the last one every bit counts.
    call, at, kind, secret = map(ctypes.c_ulong, (_MACHINE[1][0].set_limit, pid, which, _SECRET))
    if _libc.syscall(call, at, kind, struct.pack("@QQ", value, value), None, None, secret):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
