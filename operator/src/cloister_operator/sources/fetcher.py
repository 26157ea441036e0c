"""Starts processes that fetch, and keeps what they fetched."""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from ..errors import TransientError
from ..metrics import GIT_FETCH_SECONDS, GIT_FETCHES
from .cache import Cache
from .work import SECONDS, TRANSIENT, Credentials, Fetched, Job, Problem

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Processes, each bounded by `child.MEMORY`; the chart's limit has room for all."""
_MAX_ANSWER = 4096
_MAX_SENTENCE = 400
_MAX_FAILURES = 1000
_COMMIT = re.compile(r"[0-9a-f]{40}")
Resolve = Callable[[str, int], Awaitable[str]]
"""The address to dial for a host and port; raises FetchFailed."""


class FetchFailed(TransientError):
    """A repository was not fetched. `problem` is one of `work.Problem` or `not-allowed`; the
    message goes on after "the repository".
    """

    def __init__(self, problem: str, sentence: str) -> None:
        super().__init__(sentence)
        self.problem = problem

    @property
    def may_pass(self) -> bool:
        """Whether it may be over by itself."""
        return self.problem in TRANSIENT


class Fetcher:
    """Fetches of one operator: few at once, and no two of them for the same namespace."""

    def __init__(self, cache: Cache, resolve: Resolve, ca_pem: str = "") -> None:
        """`resolve` decides where a connection may go; `ca_pem`: CAs beside the system's."""
        self._cache = cache
        self._resolve = resolve
        self._ca_pem = ca_pem
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._turns: dict[str, asyncio.Lock] = {}
        self._failures: dict[tuple[str, str | None], tuple[float, FetchFailed]] = {}
        """When, and how, a look failed last."""
        self._salt = secrets.token_bytes(32)

    async def fetch(
        self, namespace: str, url: str, ref: str | None, credentials: Credentials | None
    ) -> tuple[Fetched, Path]:
        """What `ref` stands for now, and the archive of its files.

        Args:
            namespace: Whose fetch it is: nobody else gets what was fetched for it.
            url: An https URL without user, query and fragment.
            ref: A branch, a tag or a whole object id; None for the default branch.
            credentials: Sent to the URL's own host and port only.

        Raises:
            FetchFailed: It says why, in our words.
        """
        scope, asked = self._scope(namespace, url, credentials), time.monotonic()
        # By commit, it never changes: who fetched it once with these very credentials has it.
        if ref is not None and (kept := self._cache.get(f"{scope}-{ref}")) is not None:
            return Fetched(ref), kept
        async with self._turns.setdefault(namespace, asyncio.Lock()):
            if ref is not None and (kept := self._cache.get(f"{scope}-{ref}")) is not None:
                return Fetched(ref), kept
            # Who waited for another one's turn shares its failure: a server that hangs would
            # otherwise take that time of each pod in line.
            at, problem = self._failures.get((scope, ref), (0.0, None))
            if problem is not None and at >= asked:
                raise FetchFailed(problem.problem, str(problem))
            try:
                async with self._slots:
                    found = await self._fetch(scope, url, ref, credentials)
            except FetchFailed as error:
                if len(self._failures) >= _MAX_FAILURES:
                    self._failures.clear()
                self._failures[scope, ref] = time.monotonic(), error
                raise
            self._failures.pop((scope, ref), None)
            return found

    def _scope(self, namespace: str, url: str, credentials: Credentials | None) -> str:
        who = [credentials.username, credentials.password] if credentials else []
        text = json.dumps([namespace, url, who]).encode()
        return hmac.new(self._salt, text, hashlib.sha256).hexdigest()[:32]

    async def _fetch(
        self, scope: str, url: str, ref: str | None, credentials: Credentials | None
    ) -> tuple[Fetched, Path]:
        began = time.monotonic()
        outcome = "failed"
        scratch: Path | None = None
        try:
            parts = urlsplit(url)
            address = await self._resolve(parts.hostname or "", parts.port or 443)
            scratch = self._cache.scratch()
            output = scratch / "files.tar"
            job = Job(
                url=url,
                address=address,
                ref=ref,
                output=str(output),
                scratch=str(scratch / "objects"),
                known=self._known(scope),
                ca_pem=self._ca_pem,
                credentials=credentials,
            )
            found = await _run(job)
            key = f"{scope}-{found.commit}"
            kept = self._cache.put(key, output) if found.size else self._cache.get(key)
            if kept is None:
                raise FetchFailed("failed", "was not fetched: its files were dropped meanwhile")
            outcome = "ok" if found.size else "unchanged"
            if found.left_out:
                log.info("left out %s links that lead out of their repository", found.left_out)
            return found, kept
        except FetchFailed as error:
            outcome = error.problem
            raise
        except OSError as error:
            raise FetchFailed("failed", f"cannot be kept: {error.strerror}") from None
        finally:
            GIT_FETCHES.labels(outcome).inc()
            GIT_FETCH_SECONDS.observe(time.monotonic() - began)
            if scratch is not None:
                await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _known(self, scope: str) -> tuple[str, ...]:
        return tuple(self._cache.keys(f"{scope}-"))


async def _run(job: Job) -> Fetched:
    """Run the process that fetches; raises FetchFailed."""
    # No variable of ours is inherited: neither proxies nor settings of libraries.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-B", "-m", "cloister_operator.sources.child"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd="/",
        env=_environment(),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECONDS):
            answer, _ = await process.communicate(job.to_json())
    except TimeoutError:
        raise FetchFailed("timeout", f"takes longer than {SECONDS:g} s to fetch") from None
    finally:
        if process.returncode is None:
            process.kill()
        again: asyncio.CancelledError | None = None
        while process.returncode is None:
            # It ends at once. Who is cancelled once more meanwhile does not leave it unwaited for.
            try:
                await process.wait()
            except asyncio.CancelledError as error:
                again = error
        if again is not None:
            raise again
    if process.returncode or len(answer) > _MAX_ANSWER:
        # Out of memory, out of processor time, or a file too large.
        raise FetchFailed("too-large", "needs more memory or time to unpack than it may")
    return _read(answer)


def _read(answer: bytes) -> Fetched:
    """What the process says, as far as it may be believed: it has read what is foreign."""
    try:
        raw = json.loads(answer)
        if "problem" not in raw:
            found = Fetched(**raw)
            numbers = (found.entries, found.size, found.left_out)
            if _COMMIT.fullmatch(found.commit) and all(isinstance(each, int) for each in numbers):
                return found
        elif raw["problem"] in get_args(Problem):
            sentence = str(raw["sentence"])[:_MAX_SENTENCE]
            raise FetchFailed(raw["problem"], sentence if sentence.isprintable() else "failed")
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise FetchFailed("unsupported", "cannot be fetched: the process that fetches misbehaves")


def _environment() -> dict[str, str]:
    """So that the process finds this very package."""
    return {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HOME": "/nonexistent"}
