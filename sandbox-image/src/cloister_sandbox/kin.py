"""Trees of processes: who belongs to one, whatever it did to leave it, and ending all of them.

A tree is a program with all that it starts. Orphans of it become children of this server, which is
PID 1 of its container.
"""

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from .births import BIRTHS
from .lacking import lacks
from .looks import in_thread
from .marks import Marks, number_of
from .others import send
from .rereading import again, whole

MARK = "CLOISTER_CONTEXT"
"""Variable that names the tree a program belongs to. Processes that left their parents are found by
it where the kernel gives trees no numbers (see marks)."""
NOBODY = -1
"""No process is or was led by this pid."""
ENDING_SECONDS = 5.0
"""For so long processes that do not end are signalled again."""
_OWN_CHILDREN = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
CHILDREN_ARE_LISTED = Path(_OWN_CHILDREN).exists()
_MANY = 1000
"""Processes; to look at so many one by one takes about 20 ms."""
_PAGE = 4096
_VARIABLES_PAGES = 512
"""Pages of variables that are looked through; with the usual limit of the stack nobody has more. A
process may say that any part of its memory is its variables, and make that as long as it likes."""
_VARIABLES_SECONDS = 0.25
"""For so long a process's variables are looked through. The kernel waits for each page of them
while the process changes its memory, which it may do again and again, for a second each time."""
_CHASES, _LOOKS = 20, 3
"""Looks at the list of orphans after each look at the whole table: where that had some of a tree,
and where it had none.
"""
_marks = Marks()


def begin_tree(pid: int, mark: str) -> None:
    """A process, which has started nothing yet, leads a tree, or belongs to one that there is."""
    _marks.put(pid, mark)


def _table() -> dict[int, tuple[int, int]]:
    """pid -> (parent, session) of every process in sight that has not ended.

    Raises OSError where there is no descriptor to look at one: it must not seem gone.
    """
    found = {}
    with os.scandir("/proc") as entries:
        pids = [int(each.name) for each in entries if each.name.isdigit()]
    for pid in pids:
        try:
            fields = _fields(pid)
        except OSError as error:
            if lacks(error):
                raise
            continue
        if not _is_over(fields):
            found[pid] = (int(fields[1]), int(fields[3]))
    return found


def _marked(pid: int) -> set[str]:
    """The trees that its variables name, as far as they can be read in time; raises OSError as
    `_table` does.
    """
    pages: list[bytes] = []
    until = time.monotonic() + _VARIABLES_SECONDS
    try:
        with Path(f"/proc/{pid}/environ").open("rb", buffering=0) as file:
            while len(pages) < _VARIABLES_PAGES and (page := file.read(_PAGE)):
                pages.append(page)
                if time.monotonic() > until:
                    break
    except OSError as error:
        if lacks(error):
            raise
        return set()
    name = f"{MARK}=".encode()
    return {
        os.fsdecode(each[len(name) :])
        for each in b"".join(pages).split(b"\0")
        if each.startswith(name)
    }


def members(leader: int, mark: str, spared: Collection[int] | None = None) -> list[int]:
    """Every process of a tree: descendants, members of its sessions, and orphans."""
    return _members(leader, (mark,), _marks.number(mark), spared)


def _members(
    leader: int, marks: Collection[str], number: int, spared: Collection[int] | None = None
) -> list[int]:
    """The same of a tree, or of several whose leaders and numbers are gone.

    Orphans are known by their number or mark; those whose number is no living tree's count too, and
    those that have neither.
    With `spared`, without the leader, these processes, and what descends from them.
    """
    before = BIRTHS.now()
    table = _table()
    me = os.getpid()
    # The pid of a leader that is gone may be another process by now.
    found = {leader} if table.get(leader) == (me, leader) else set()
    mine = {pid: number_of(pid) for pid, (parent, _) in table.items() if parent == me != pid}
    found |= {pid for pid, carried in mine.items() if _belongs(pid, carried, marks, number)}
    if me == 1 and _marks.hold:
        # Every program gets a number once it runs. What has none was started by one that was
        # quicker; and what keeps its tree's mark is known by that. A mark of its own invention is
        # none. A start may take for ever, where a tool stops it: that hides nobody else.
        strays = {
            pid
            for pid, carried in mine.items()
            if not carried and not any(map(_marks.is_known, _marked(pid)))
        }
        started = _children_of(before.threads) if strays else None
        if started is not None and BIRTHS.now() == before:
            found |= strays - started
    found = _below(table, found, {leader})
    if spared is not None:
        kept = set(spared).intersection(table)
        found -= _below(table, kept, set(kept)) | {leader}
    return sorted(found)


def _children_of(threads: Collection[int]) -> set[int] | None:
    """What threads of this process have started; None where the kernel does not tell."""
    found: set[int] = set()
    for each in threads:
        try:
            listed = Path(f"/proc/{os.getpid()}/task/{each}/children").read_bytes()
        except OSError:
            return None
        found.update(map(int, listed.split()))
    return found


def _below(table: dict[int, tuple[int, int]], found: set[int], sessions: set[int]) -> set[int]:
    """These processes, their descendants, and the members of sessions that they lead.

    Each process is looked at once, however deep below each other tools have put them.
    """
    me = os.getpid()
    children: dict[int, list[int]] = {}
    in_session: dict[int, list[int]] = {}
    for pid, (parent, session) in table.items():
        if pid != me:
            children.setdefault(parent, []).append(pid)
            in_session.setdefault(session, []).append(pid)
    pending = [each for pid in found for each in children.get(pid, ())]
    pending += [each for session in sessions for each in in_session.get(session, ())]
    while pending:
        pid = pending.pop()
        if pid in found:
            continue
        found.add(pid)
        pending += children.get(pid, ())
        session = table[pid][1]
        if session in found and session not in sessions:
            sessions.add(session)
            pending += in_session.get(session, ())
    return found


def _belongs(pid: int, carried: int, marks: Collection[str], number: int) -> bool:
    if carried:
        return carried == number or _marks.astray(carried)
    return not _marked(pid).isdisjoint(marks)


def unnumbered() -> list[int]:
    """Children of this process that carry no number: those that are being started, as a rule."""
    me = os.getpid()
    return [pid for pid, (parent, _) in _table().items() if parent == me and not number_of(pid)]


def living(marks: Collection[str]) -> set[str]:
    """Those of some trees of which there are processes."""
    wanted = set(marks)
    numbers = {_marks.number(each): each for each in wanted}
    found = set()
    table = _table()
    mine = {pid for pid, (parent, _) in table.items() if parent == os.getpid()}
    for pid in _below(table, mine, set()):
        carried = number_of(pid)
        if not carried:
            found |= _marked(pid) & wanted
        elif carried in numbers:
            found.add(numbers[carried])
    return found


def forget_tree(mark: str) -> None:
    """A tree has ended by itself, and nothing of it is left."""
    _marks.forget(mark)


def orphans() -> list[int]:
    """The children of this process, as the kernel lists them; quicker than looking at them all."""
    try:
        return [int(each) for each in again(_OWN_CHILDREN).split()]
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """The children of a process's first thread; none where the kernel does not tell.

    Raises OSError without a descriptor. By the bare calls, because every command looks.
    """
    try:
        fd = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if lacks(error):
            raise
        return []
    try:
        return [int(each) for each in whole(fd).split()]
    except OSError:
        return []
    finally:
        os.close(fd)


async def background(leader: int, mark: str, known: list[int]) -> list[int]:
    """The processes of a tree beside its leader; those that were known, where no descriptor is left
    to look for them.
    """
    try:
        found = _listed(leader, mark) if CHILDREN_ARE_LISTED else []
        if not CHILDREN_ARE_LISTED or len(found) >= _MANY:
            # Not on the event loop: every command looks, and the others' calls go on. And a process
            # may keep its variables, by which it is found, from being read.
            found = await in_thread(functools.partial(members, leader, mark))
    except OSError:
        return known
    return [pid for pid in found if pid != leader]


def _listed(leader: int, mark: str) -> list[int]:
    """The same, as quickly as can be, and about _MANY at most, where the kernel lists children."""
    number = _marks.number(mark)
    pending = children(leader)
    if number:
        pending += [pid for pid in orphans() if pid != leader and number_of(pid) == number]
    found: list[int] = []
    while pending and len(found) < _MANY:
        pid = pending.pop()
        below = children(pid)
        if below or not _has_ended(pid):
            found.append(pid)
        pending += below
    return found


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take notice; raises OSError
    without a descriptor.
    """
    try:
        return _is_over(_fields(pid))
    except OSError as error:
        if lacks(error):
            raise
        return True


def _fields(pid: int) -> list[bytes]:
    """What the kernel says of a process behind its name, which may be any bytes; raises OSError."""
    line = Path(f"/proc/{pid}/stat").read_bytes()
    return line[line.rindex(b")") + 2 :].split()


def _is_over(fields: list[bytes]) -> bool:
    # One whose first thread has ended may go on in another.
    return fields[0] in (b"Z", b"X") and int(fields[17]) <= 1


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(pid, number)


async def kill_tree(leader: int, mark: str) -> list[int]:
    """End every process of a tree; returns those that would not end."""
    return await _end(leader, (mark,), _marks.forget(mark), None)


async def kill_left(marks: Collection[str]) -> list[int]:
    """End what is left of trees whose leaders have ended, in as many looks as one of them takes.

    Returns what would not end.
    """
    # Those that have no living tree's number count as of any.
    number = max((_marks.forget(each) for each in marks), default=0)
    return await _end(NOBODY, frozenset(marks), number, None) if marks else []


async def kill_started(leader: int, mark: str, spared: Collection[int]) -> list[int]:
    """End a tree but for its leader, some of its processes, and what descends from those.

    Returns what would not end.
    """
    return await _end(leader, (mark,), _marks.number(mark), spared)


async def _end(
    leader: int, marks: Collection[str], number: int, spared: Collection[int] | None
) -> list[int]:
    """Stopped first, so that none can start another while the rest is looked up; looked up again
    until nothing is left, because a process may have been in the middle of starting one.
    """
    deadline = time.monotonic() + ENDING_SECONDS
    over: set[int] = set()
    strike = functools.partial(_strike, leader, marks, number, spared, over)
    while True:
        try:
            found = await in_thread(strike)
        except OSError:
            # Without a descriptor nobody can be looked up.
            if time.monotonic() > deadline:
                raise
            found = [leader]
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.005)


def _strike(
    leader: int,
    marks: Collection[str],
    number: int,
    spared: Collection[int] | None,
    over: set[int],
) -> list[int]:
    """One round; returns what was there.

    `over` are orphans that were seen to have ended in earlier rounds: who traces one can keep it
    from being reaped for as long as it likes.
    """
    found = _members(leader, marks, number, spared)
    signal_all(found, signal.SIGSTOP)
    again = _members(leader, marks, number, spared) if found else found
    signal_all(again, signal.SIGKILL)
    # A process that starts the next and ends, again and again, is gone when the table was read.
    # Its offspring comes to this process, and the list of children is quick to read.
    known = {leader, *again, *(spared or ())}
    chased = []
    # Also where the tree's number is forgotten: then it is no living one's, which tells as much.
    looks = _CHASES if again else _LOOKS
    for _ in range(looks if _marks.hold else 0):
        # The newest are told last.
        for pid in reversed(orphans()):
            if pid in known:
                continue
            if _belongs(pid, number_of(pid), marks, number):
                signal_all((pid,), signal.SIGKILL)
                if pid not in over:
                    chased.append(pid)
                    if _has_ended(pid):
                        over.add(pid)
            else:
                known.add(pid)
    return found or chased
