"""What is in the git repositories that Environments name, and how pods get it.

Fetching takes its time, and a server may not answer: a reconcile never waits for one. It takes what
was found last, which the Environment's status keeps over a restart, and has it looked at again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloister_api.cancelling import being_cancelled

from ..api import conditions
from ..api.common import JSON, GitSource, SecretRef
from ..api.conditions import Finding
from ..api.environment import EnvironmentObject, GitCommit
from ..api.pod import GitTree, PodView
from ..cache import Key
from ..cluster.api import Api
from ..cluster.resources import SECRETS
from ..errors import NotFoundError, OperatorError, PermanentError, TransientError
from ..logs import about
from ..plan import git as rules
from ..settings import Settings
from ..sources.fetcher import FetchFailed
from ..sources.work import Credentials, Fetched

log = logging.getLogger(__name__)

Question = tuple[str, str, str | None, str]
"""Namespace, URL, ref, and the Secret with the credentials (empty for none)."""
AGAIN_SECONDS = 30.0
"""After a look that failed."""


class Fetches(Protocol):
    """See sources.fetcher.Fetcher."""

    async def fetch(
        self, namespace: str, url: str, ref: str | None, credentials: Credentials | None
    ) -> tuple[Fetched, Path]: ...


@dataclass
class Answer:
    """What is known of one question."""

    commit: str | None = None
    problem: OperatorError | None = None
    """What the last look ended with, if it failed."""
    due: float = 0.0
    """When to look again, on the event loop's clock."""
    task: "asyncio.Task[None] | None" = None

    @property
    def lasting(self) -> bool:
        """Whether there is a problem that is not over by itself."""
        if isinstance(self.problem, FetchFailed):
            return not self.problem.may_pass
        return isinstance(self.problem, PermanentError)


class Repositories:
    """Answers for one process; Environments are told when one changes."""

    def __init__(self, api: Api, settings: Settings, changed: Callable[[Key], None]) -> None:
        """`changed` is called with the Environment that asked."""
        self._api = api
        self._settings = settings
        self._changed = changed
        self._answers: dict[Question, Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        """Those of answers that nobody asks for any more, too: each ends its process first."""
        self._asked: dict[Key, frozenset[Question]] = {}
        self._used: dict[Key, dict[int, str]] = {}
        self.fetches: Fetches | None = None
        """None where nothing can be fetched, as in an operator without a disk for it."""

    def commits(self, environment: EnvironmentObject) -> dict[int, str]:
        """The object ids of an Environment's repositories, by the place of their file.

        Raises PermanentError that names the field: one is not allowed, or was never fetched and
        cannot be, or is fetched now (reason FetchingGit; `changed` follows).
        """
        named = rules.sources(environment)
        questions = [_question(environment.metadata.namespace, git) for _, _, git in named]
        self._forget(environment.key, questions)
        for index, _, git in named:
            rules.check(git, index, self._settings)
        found = {}
        waits: PermanentError | None = None
        for (index, file, git), question in zip(named, questions, strict=True):
            answer = self._answer(question, environment, file.path, git)
            self._look(question, answer, rules.field(index), environment.key)
            if answer.commit is not None and not answer.lasting:
                found[index] = answer.commit
            elif answer.problem is not None:
                raise _told(answer.problem, git, rules.field(index))
            else:
                waits = waits or PermanentError(
                    conditions.FETCHING_GIT,
                    f"repository {git.url} is fetched for the first time",
                    rules.field(index),
                )
        if waits is not None:
            raise waits
        self._used[environment.key] = found
        return found

    def current(self, environment: EnvironmentObject) -> bool:
        """Whether nothing changed since `commits` was last asked of the Environment."""
        now = {}
        for index, _, git in rules.sources(environment):
            answer = self._answers.get(_question(environment.metadata.namespace, git))
            if answer is None or answer.commit is None or answer.lasting:
                return False
            now[index] = answer.commit
        return not now or now == self._used.get(environment.key)

    def status(self, environment: EnvironmentObject) -> list[GitCommit]:
        """What the Environment's status says of its repositories."""
        found = self._used.get(environment.key, {})
        return [
            GitCommit(path=file.path, url=git.url, ref=git.ref, commit=found[index])
            for index, file, git in rules.sources(environment)
            if index in found
        ]

    def findings(self, environment: EnvironmentObject) -> list[Finding]:
        """The condition GitFetched; none for an Environment without repositories."""
        asked = rules.sources(environment)
        if not asked:
            return []
        for index, _, git in asked:
            answer = self._answers.get(_question(environment.metadata.namespace, git))
            if answer is not None and answer.problem is not None:
                told = _told(answer.problem, git, rules.field(index))
                message = str(told)
                if answer.commit is not None:
                    message = f"{message}; new pods get commit {answer.commit[:12]}"
                return [Finding(conditions.GIT_FETCHED, "False", told.reason, message)]
            if answer is None or answer.commit is None:
                message = f"repository {git.url} is fetched for the first time"
                reason = conditions.FETCHING_GIT
                return [Finding(conditions.GIT_FETCHED, "False", reason, message)]
        message = "every repository was fetched"
        return [Finding(conditions.GIT_FETCHED, "True", conditions.FETCHED, message)]

    def forget(self, key: Key) -> None:
        """An Environment is gone."""
        self._used.pop(key, None)
        self._forget(key, ())

    async def archive(
        self, pod: PodView, path: str, environment: EnvironmentObject | None
    ) -> Path | None:
        """The archive of the files that a pod waits for at `path`.

        None where the Environment names them no more: the pod is of no use. Raises TransientError
        while they cannot be fetched, PermanentError where they cannot be at all.
        """
        tree = next((each for each in pod.trees if each.path == path), None)
        source = _still(environment, tree) if environment and tree else None
        if tree is None or source is None or self.fetches is None:
            return None
        index, git = source
        rules.check(git, index, self._settings)
        where = rules.field(index)
        credentials = await self._credentials(pod.namespace, git, where)
        try:
            _, found = await self.fetches.fetch(pod.namespace, git.url, tree.commit, credentials)
        except FetchFailed as error:
            if error.may_pass:
                raise TransientError(str(_told(error, git, where))) from None
            raise _told(error, git, where) from None
        return found

    async def close(self) -> None:
        """Stop looking."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _answer(
        self, question: Question, environment: EnvironmentObject, path: str, git: GitSource
    ) -> Answer:
        answer = self._answers.setdefault(question, Answer())
        if answer.commit is None and answer.problem is None:
            # What an operator before this one found.
            answer.commit = next(
                (
                    each.commit
                    for each in environment.status.git
                    if (each.path, each.url, each.ref) == (path, git.url, git.ref)
                ),
                None,
            )
        return answer

    def _look(self, question: Question, answer: Answer, where: str, key: Key) -> None:
        now = asyncio.get_running_loop().time()
        if answer.task is not None or now < answer.due:
            return
        answer.task = task = asyncio.create_task(self._ask(question, answer, where, key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, question: Question, answer: Answer, where: str, key: Key) -> None:
        namespace, url, ref, secret = question
        before = answer.commit, str(answer.problem or "")
        pause = self._settings.git_refresh_seconds
        with about(namespace=namespace, environment=key[1]):
            try:
                if self.fetches is None:
                    raise FetchFailed(
                        "failed", "cannot be fetched: the operator has no disk for it"
                    )
                git = GitSource(
                    url=url, ref=ref, secret_ref=SecretRef(name=secret) if secret else None
                )
                credentials = await self._credentials(namespace, git, where)
                found, _ = await self.fetches.fetch(namespace, url, ref, credentials)
                answer.commit, answer.problem = found.commit, None
                if rules.is_commit(ref):
                    pause = float("inf")
            except OperatorError as error:
                answer.problem = error
                pause = min(pause, AGAIN_SECONDS)
                log.warning("repository %s: %s", url, error)
            except (Exception, asyncio.CancelledError) as error:
                if being_cancelled():
                    raise
                answer.problem = FetchFailed("failed", "cannot be fetched: see the operator's log")
                pause = min(pause, AGAIN_SECONDS)
                # The error may quote what it was given.
                log.error("repository %s: %s", url, type(error).__name__)  # noqa: TRY400
            finally:
                answer.due = asyncio.get_running_loop().time() + pause
                answer.task = None
        if (answer.commit, str(answer.problem or "")) != before:
            for other, questions in list(self._asked.items()):
                if question in questions:
                    self._changed(other)

    async def _credentials(self, namespace: str, git: GitSource, where: str) -> Credentials | None:
        if git.secret_ref is None:
            return None
        name = git.secret_ref.name
        found: JSON | None
        try:
            found = await self._api.get(SECRETS, namespace, name)
        except NotFoundError:
            found = None
        login = rules.login(name, found, git.url, f"{where}.secretRef")
        return Credentials(login.username, login.password)

    def _forget(self, key: Key, asked: Sequence[Question]) -> None:
        """Drop the answers that nobody asks for any more."""
        before = self._asked.pop(key, frozenset())
        if asked:
            self._asked[key] = frozenset(asked)
        for question in before.difference(*self._asked.values()):
            answer = self._answers.pop(question, None)
            if answer and answer.task:
                answer.task.cancel()


def _question(namespace: str, git: GitSource) -> Question:
    return namespace, git.url, git.ref, git.secret_ref.name if git.secret_ref else ""


def _still(environment: EnvironmentObject, tree: GitTree) -> tuple[int, GitSource] | None:
    """By which file of its spec the Environment names what a pod waits for."""
    for index, file, git in rules.sources(environment):
        if (file.path, git.url) == (tree.path, tree.url):
            return index, git
    return None


def _told(error: OperatorError, git: GitSource, where: str) -> PermanentError:
    if isinstance(error, PermanentError):
        return error
    return PermanentError(conditions.GIT_FETCH_FAILED, f"repository {git.url} {error}", where)
