"""What the operator asks of the process that fetches, and what it is told."""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

MAX_PACKED = 64 * 1024 * 1024
"""Bytes that a server may send for one fetch."""
MAX_UNPACKED = 256 * 1024 * 1024
"""Bytes of all files of a commit."""
MAX_ENTRIES = 20_000
"""Files, links and directories of a commit."""
SECONDS = 120.0
"""For one fetch."""

Problem = Literal[
    "unreachable",
    "timeout",
    "untrusted",
    "refused",
    "missing",
    "no-ref",
    "too-large",
    "redirected",
    "unsafe",
    "unsupported",
    "failed",
]
"""Why a fetch failed."""
TRANSIENT: frozenset[str] = frozenset({"unreachable", "timeout", "failed"})
"""Those that may be over by themselves."""


@dataclass(frozen=True)
class Credentials:
    """How a git server knows who asks."""

    username: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(frozen=True)
class Job:
    """One fetch.

    `address`: the IP address to dial, whatever the URL's host resolves to by now; `ref`: a branch,
    a tag or a whole object id, None for the repository's own default; `known`: object ids whose
    files are not needed again; `ca_pem`: CAs that are trusted beside the system's; `output`: the
    archive to write; `scratch`: a directory to make on the same disk.
    """

    url: str
    address: str
    ref: str | None
    output: str
    scratch: str
    known: tuple[str, ...] = ()
    ca_pem: str = ""
    credentials: Credentials | None = field(default=None, repr=False)

    def to_json(self) -> bytes:
        """As the process reads it from its standard input: nothing of it is in its arguments."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Job":
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        given = raw.pop("credentials")
        raw["known"] = tuple(raw["known"])
        return cls(**raw, credentials=Credentials(**given) if given else None)


@dataclass(frozen=True)
class Fetched:
    """What was found.

    `commit`: the object id that the ref stands for; `entries` and `size` (bytes of the archive) are
    0 where its files were known.
    """

    commit: str
    entries: int = 0
    size: int = 0
    left_out: int = 0
    """Links that lead out of the repository."""
