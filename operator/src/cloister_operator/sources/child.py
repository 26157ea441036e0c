"""The process that fetches: a job on its standard input, an answer in JSON on its standard output.

    python -m cloister_operator.sources.child

It bounds itself before it reads anything foreign, and says nothing but what is in `work`.
"""

import errno
import json
import re
import resource
import sys
from dataclasses import asdict
from pathlib import Path

from dulwich.errors import GitProtocolError, NotGitRepository
from dulwich.object_format import DEFAULT_OBJECT_FORMAT
from dulwich.object_store import DiskObjectStore, ObjectStoreGraphWalker
from dulwich.objects import Commit, ObjectID, Tag

from . import trees
from .transport import PinnedClient, TransferFailed
from .trees import TooLarge, UnsafeTree
from .work import MAX_ENTRIES, MAX_UNPACKED, SECONDS, Fetched, Job

MEMORY = 192 * 1024 * 1024
"""Bytes of address space. One file of 30 MiB takes 120 MiB to fetch, a small repository 35."""
_OBJECT_ID = re.compile(r"[0-9a-f]{40}")
_TAGS = 5
"""Tags that point at each other."""


def main() -> int:
    """Fetch; the exit code is 0 whenever there is an answer."""
    _bound()
    job = Job.from_json(sys.stdin.buffer.read())
    answer: dict[str, object]
    try:
        answer = asdict(fetch(job))
    except TransferFailed as error:
        answer = {"problem": error.problem, "sentence": error.sentence}
    except (TooLarge, MemoryError) as error:
        what = str(error) or "files that need too much memory"
        answer = {"problem": "too-large", "sentence": f"has {what}"}
    except OSError as error:
        large = error.errno == errno.EFBIG
        answer = {
            "problem": "too-large" if large else "failed",
            "sentence": f"has more than {MAX_UNPACKED >> 20} MiB" if large else "cannot be kept",
        }
    except UnsafeTree as error:
        answer = {"problem": "unsafe", "sentence": f"has {error}"}
    except Exception as error:
        # Whatever a server sends may raise anything, with its words in it.
        answer = {"problem": "unsupported", "sentence": "sends what cannot be understood"}
        if _of_memory(error):
            answer = {"problem": "too-large", "sentence": "has files that need too much memory"}
    sys.stdout.write(json.dumps(answer))
    return 0


def _of_memory(error: BaseException) -> bool:
    """Whether it began with too little memory: cleaning up after that may fail in its own way."""
    while error.__context__ is not None:
        error = error.__context__
    return isinstance(error, MemoryError)


def _bound() -> None:
    for which, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, int(SECONDS)),
        (resource.RLIMIT_FSIZE, MAX_UNPACKED + 3 * 512 * MAX_ENTRIES),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hardest = resource.getrlimit(which)
        bound = value if hardest == resource.RLIM_INFINITY else min(value, hardest)
        resource.setrlimit(which, (bound, bound))


def fetch(job: Job) -> Fetched:
    """Fetch one commit without its history, and write its files to `job.output`.

    Raises TransferFailed, UnsafeTree, TooLarge, and anything for what cannot be understood.
    """
    client = PinnedClient(job.url, job.address, job.ca_pem, job.credentials)
    path = ""
    if job.ref and _OBJECT_ID.fullmatch(job.ref):
        wanted = ObjectID(job.ref.encode())
    else:
        wanted = _find(client, path, job.ref)
    if wanted.decode() in job.known:
        return Fetched(wanted.decode())
    store = DiskObjectStore.init(job.scratch, object_format=DEFAULT_OBJECT_FORMAT)
    file, commit, abort = store.add_pack()
    try:
        client.fetch_pack(
            path,
            lambda _refs, depth=None: [wanted],  # noqa: ARG005
            ObjectStoreGraphWalker([], lambda _: [], shallow=set()),
            file.write,
            progress=lambda _: None,
            depth=1,
            ref_prefix=[b"HEAD"],
        )
    except TransferFailed:
        abort()
        raise
    except (GitProtocolError, NotGitRepository):
        abort()
        raise TransferFailed("no-ref", f"does not give out {_shown(job.ref)}") from None
    commit()
    found = _commit(store, wanted)
    with Path(job.output).open("wb") as out:
        written = trees.write(store, found, out)
        size = out.tell()
    store.close()
    return Fetched(wanted.decode(), written.entries, size, written.left_out)


def _find(client: PinnedClient, path: str, ref: str | None) -> ObjectID:
    """What the server calls by this name: a branch before a tag, as `git clone` has it."""
    if ref is None:
        names = ["HEAD"]
    elif ref.startswith("refs/"):
        names = [ref]
    else:
        names = [f"refs/heads/{ref}", f"refs/tags/{ref}"]
    wanted = [each.encode() for each in names]
    try:
        refs = client.get_refs(path, ref_prefix=wanted).refs
    except TransferFailed:
        raise
    except (GitProtocolError, NotGitRepository):
        raise TransferFailed("unsupported", "sends what cannot be understood") from None
    for each in wanted:
        found = {bytes(name): value for name, value in refs.items()}.get(each)
        if found is not None and _OBJECT_ID.fullmatch(found.decode("ascii", "replace")):
            return found
    raise TransferFailed("no-ref", f"has no {_shown(ref)}")


def _commit(store: DiskObjectStore, wanted: ObjectID) -> Commit:
    found = store[wanted]
    for _ in range(_TAGS):
        if not isinstance(found, Tag):
            break
        found = store[found.object[1]]
    if not isinstance(found, Commit):
        raise TransferFailed("unsupported", "has no commit there")
    return found


def _shown(ref: str | None) -> str:
    return f"branch, tag or commit {ref}" if ref else "default branch"


if __name__ == "__main__":
    sys.exit(main())
