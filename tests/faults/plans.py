"""What each call of a fault run does, drawn from a seed and the call's number alone.

So one call of a thousand can be made again by itself: the same work under the same faults.
"""

import random
from dataclasses import dataclass
from enum import Enum

from support.fault_proxy import Fault, schedule

BLOB_BYTES = 4 * 1024 * 1024
"""Size of the file of known bytes that programs print parts of."""
TEXT_BYTES = 512 * 1024
"""The same, printable, for what answers in text."""
_CODES = 250


class Work(Enum):
    """What a call does."""

    BASH = "bash"
    READ = "read"
    WRITE = "write"
    EDIT = "edit"
    PROGRAM = "program"
    STDIN = "stdin"
    SHELL = "shell"
    UPLOAD = "upload"
    DOWNLOAD = "download"


_WEIGHTS = {
    Work.BASH: 25,
    Work.READ: 8,
    Work.WRITE: 7,
    Work.EDIT: 10,
    Work.PROGRAM: 18,
    Work.STDIN: 10,
    Work.SHELL: 12,
    Work.UPLOAD: 5,
    Work.DOWNLOAD: 5,
}
_LARGEST = {
    Work.BASH: 90_000,
    Work.READ: 60_000,
    Work.WRITE: 60_000,
    Work.EDIT: 2_000,
    Work.PROGRAM: 3_000_000,
    Work.STDIN: 400_000,
    Work.SHELL: 1_000_000,
    Work.UPLOAD: 3_000_000,
    Work.DOWNLOAD: 3_000_000,
}
_TWICE = (Work.BASH, Work.EDIT, Work.PROGRAM, Work.SHELL)
"""What is idempotent by its id and so may be asked for on two connections at once."""


@dataclass(frozen=True)
class Plan:
    """One call."""

    seed: int
    number: int
    work: Work
    start: int
    """Where in the known bytes its own begin."""
    size: int
    pause: float
    """Seconds for which the command sleeps between its halves."""
    twice: bool
    """Whether another connection asks for the same at the same time."""
    faults: tuple[Fault, ...]

    @property
    def id(self) -> str:
        """Unique over all runs on one server."""
        return f"f{self.seed}.{self.number}"

    @property
    def code(self) -> int:
        """The exit code that its command must have: its neighbours' differ."""
        return 1 + self.number % _CODES


def plan(seed: int, number: int, *, scale: float = 1.0, silence: float = 1.0) -> Plan:
    """The call of this number.

    scale: of the largest sizes. silence: seconds after which the client gives a connection up.
    """
    chance = random.Random(f"{seed}:{number}")
    work = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    most = max(1000, int(_LARGEST[work] * (scale if _LARGEST[work] > 100_000 else 1.0)))
    # As many small sizes as large ones, whatever that means.
    size = int(10 ** chance.uniform(1, len(str(most)) - 1 + int(str(most)[0]) / 10))
    size = min(size, most)
    whole = TEXT_BYTES if work in (Work.BASH, Work.READ, Work.WRITE, Work.EDIT) else BLOB_BYTES
    return Plan(
        seed=seed,
        number=number,
        work=work,
        start=chance.randrange(whole - size),
        size=size,
        pause=chance.choice((0.0, 0.0, 0.0, 0.02, 0.1)),
        twice=work in _TWICE and chance.random() < 0.25,
        faults=schedule(chance, size, silence),
    )


def blob() -> bytes:
    """The known bytes: no two parts of them are alike."""
    return random.Random("blob").randbytes(BLOB_BYTES)


def text() -> bytes:
    """The known text, in lines of 64 characters."""
    line = bytes(range(48, 48 + 64))
    table = bytes(line[each % 64] if each % 67 else 10 for each in range(256))
    return random.Random("text").randbytes(TEXT_BYTES).translate(table)
