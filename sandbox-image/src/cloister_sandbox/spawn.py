"""Starting programs by posix_spawn(3), called through ctypes.

Python's own ways to start one hold the interpreter's lock until the new program runs, and the
kernel may take long to let it: a tool can hold a lease on the file, or have it on a file system of
its own making. posix_spawn blocks every signal in the thread until the program runs, so one for the
server is never lost to a thread that is about to start a tool. And it costs half as much.
"""

import ctypes
import errno
import functools
import os
import time
from collections.abc import Mapping, Sequence

_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
_ACTIONS_BYTES, _ATTRIBUTES_BYTES, _SIGNALS_BYTES = 512, 1024, 128
"""More than glibc's posix_spawn_file_actions_t and posix_spawnattr_t take; its sigset_t."""
_libc = ctypes.CDLL(None)
_quick = ctypes.PyDLL(None)
"""The same library; its calls keep the interpreter's lock, for what never waits."""
_under_way: dict[object, float] = {}
"""Since when each thread that starts a program waits for that."""
_ELSEWHERE = (errno.ENOENT, errno.ENOTDIR)
_DENIED = (errno.EACCES, errno.EPERM)


def _attributes() -> ctypes.Array[ctypes.c_char]:
    """A session of its own, no signal blocked, and none ignored, whoever started this server."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    signals = ctypes.create_string_buffer(_SIGNALS_BYTES)
    _quick.posix_spawnattr_init(attributes)
    _quick.posix_spawnattr_setsigmask(attributes, signals)
    _quick.sigfillset(signals)
    _quick.posix_spawnattr_setsigdefault(attributes, signals)
    flags = ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)
    _quick.posix_spawnattr_setflags(attributes, flags)
    return attributes


_OURS = _attributes()


def spawn(
    argv: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    streams: tuple[int, int, int],
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a program as the leader of a session of its own; returns its pid.

    It gets the three descriptors as its standard streams, `pass_fds` under their own numbers, and
    no other: those between are closed on exec. A name without a slash is looked for in the PATH of
    `env`. Waits until the program runs. Raises OSError when it cannot, with `cwd` as its filename
    when that is why, and ValueError for a NUL character.
    """
    arguments = _strings([os.fsencode(each) for each in argv])
    variables = _strings([os.fsencode(f"{name}={value}") for name, value in env.items()])
    directory = os.fsencode(cwd)
    if b"\0" in directory:
        raise ValueError("a NUL character in the directory")
    actions = ctypes.create_string_buffer(_ACTIONS_BYTES)
    key = object()
    _quick.posix_spawn_file_actions_init(actions)
    try:
        _check(_quick.posix_spawn_file_actions_addchdir_np(actions, directory))
        for number, fd in [*enumerate(streams), *((fd, fd) for fd in pass_fds)]:
            _check(_quick.posix_spawn_file_actions_adddup2(actions, fd, number))
        first = max((2, *pass_fds)) + 1
        _check(_quick.posix_spawn_file_actions_addclosefrom_np(actions, first))
        pid = ctypes.c_int()
        _under_way[key] = time.monotonic()
        error = _start(
            pid, os.fsencode(argv[0]), env.get("PATH", ""), actions, arguments, variables
        )
    finally:
        _under_way.pop(key, None)
        _quick.posix_spawn_file_actions_destroy(actions)
    if error:
        # The kernel does not say which of the two it was.
        about = argv[0] if os.access(cwd, os.X_OK) and os.path.isdir(cwd) else cwd  # noqa: PTH112
        raise OSError(error, os.strerror(error), about)
    return pid.value


def held_up(seconds: float) -> bool:
    """Whether some thread has waited longer than that for a program to run."""
    before = time.monotonic() - seconds
    return any(since < before for since in tuple(_under_way.values()))


@functools.cache
def nothing() -> int:
    """A descriptor for every program that is given no input, or whose output nobody wants."""
    return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)


def yield_to_server(pid: int) -> None:
    """Let the kernel end this process before the server when memory runs out."""
    # Python's own calls give the interpreter's lock away, three times, and beside a busy event loop
    # it takes longer to get it back than the kernel takes for this.
    fd = _quick.open(b"/proc/%d/oom_score_adj" % pid, os.O_WRONLY | os.O_CLOEXEC)
    if fd >= 0:
        _quick.write(fd, b"500", 3)
        _quick.close(fd)


def _start(
    pid: ctypes.c_int,
    name: bytes,
    path: str,
    actions: ctypes.Array[ctypes.c_char],
    arguments: ctypes.Array[ctypes.c_char_p],
    variables: ctypes.Array[ctypes.c_char_p],
) -> int:
    """Try each place where the program may be; returns 0, or the error to tell."""
    rest = (actions, _OURS, arguments, variables)
    if b"/" in name:
        return int(_libc.posix_spawn(ctypes.byref(pid), name, *rest))
    if path == os.environ.get("PATH"):
        # glibc looks in the PATH of this process, in one go.
        return int(_libc.posix_spawnp(ctypes.byref(pid), name, *rest))
    found = errno.ENOENT
    for directory in os.fsencode(path).split(b":"):
        place = os.path.join(directory, name)  # noqa: PTH118 - bytes
        error = int(_libc.posix_spawn(ctypes.byref(pid), place, *rest))
        if error in _DENIED:
            found = error
        elif error not in _ELSEWHERE:
            return error
    return found


def _strings(values: Sequence[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    if any(b"\0" in each for each in values):
        raise ValueError("a NUL character in an argument or variable")
    return (ctypes.c_char_p * (len(values) + 1))(*values, None)


def _check(error: int) -> None:
    if error:
        raise OSError(error, os.strerror(error))
