"""Who calls, and may they: asked of the API server, remembered for moments.

Nothing is allowed that was not asked: when the API server cannot answer, the call fails.
"""

import asyncio
import functools
import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, TypeVar

from .. import names
from ..api.backend import Caller, Reviewer
from ..errors import OperatorError
from .status import Busy, Forbidden, Unauthenticated, Unavailable

TOKEN_SECONDS: Final = 60.0
"""How long a valid token is not asked about again, and so the longest that a revoked one works."""
ACCESS_SECONDS: Final = 30.0
"""The same of a right. The kubelet remembers tokens for two minutes and rights for five."""
REFUSAL_SECONDS: Final = 2.0
"""Refusals are remembered for less: a right just granted should work at once."""
REFRESH_AFTER_SECONDS: Final = 0.2
"""What is asked again beside a call that has its answer waits until that call is likely over."""
MAX_TOKEN: Final = 16 * 1024
_SERVICE_ACCOUNT: Final = "system:serviceaccount:"
MAX_ENTRIES: Final = 4096
MAX_STRANGERS: Final = 64
"""Tokens that nobody has seen yet and that are asked about at the same time. Anybody in the cluster
may send some: they share the API server's patience with the operator's own work."""
MAX_STRANGERS_OF_ONE: Final = 16
"""Of them, those that come from one address."""
_SHARE: Final = 3
"""An address has one of so many parts of the places that nobody has: some are left, however many
addresses take all that they get.
"""

CALLER: Final[ContextVar[Caller]] = ContextVar("caller")
"""Who makes the call that is being served; the guard sets it."""

_Value = TypeVar("_Value")
_Question = TypeVar("_Question")


class Right(NamedTuple):
    """What RBAC must allow in group cloister.dev."""

    verb: str
    subresource: str = ""

    def __str__(self) -> str:
        resource = f"{names.SESSIONS}/{self.subresource}" if self.subresource else names.SESSIONS
        return f"{self.verb} on {resource}.{names.GROUP}"


_EXEC = Right("create", "exec")
RIGHTS: Final[dict[str, tuple[Right, ...]]] = {
    "Create": (Right("create"), _EXEC),
    "Get": (Right("get"),),
    "List": (Right("list"),),
    "Watch": (Right("watch"),),
    "Renew": (Right("get"), _EXEC),
    "Suspend": (Right("update"),),
    "Resume": (Right("update"), _EXEC),
    "Delete": (Right("delete"),),
    "GetEgress": (Right("get"),),
    "Relay": (Right("get"), _EXEC),
}
"""By method; a method that is not listed is refused to everybody."""


@dataclass(frozen=True)
class _Answer(Generic[_Value]):
    """An answer, until when it holds, and from when a use of it asks again in the background, so
    that a busy caller never waits for the API server.
    """

    value: _Value
    until: float
    refresh_at: float


class _Remembered(Generic[_Question, _Value]):
    """Answers by question, each for its own time; equal questions at the same time are one."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: OrderedDict[_Question, _Answer[_Value]] = OrderedDict()
        self._refusals: OrderedDict[_Question, _Answer[_Value]] = OrderedDict()
        """Apart: whoever is refused without end makes nobody else be asked about again."""
        self._asking: dict[_Question, asyncio.Task[_Value]] = {}
        self._due: set[_Question] = set()
        """Questions that will be asked again in a moment."""

    def knows(self, question: _Question) -> bool:
        """Whether `get` asks nothing new."""
        return question in self._asking or self.has(question)

    def has(self, question: _Question) -> bool:
        """Whether `get` waits for nothing."""
        known = self._found(question)
        return known is not None and self._clock() < known.until

    def _found(self, question: _Question) -> _Answer[_Value] | None:
        return self._answers.get(question) or self._refusals.get(question)

    async def get(
        self,
        question: _Question,
        ask: Callable[[], Awaitable[_Value]],
        lifetime: Callable[[_Value], float],
    ) -> _Value:
        """The remembered answer, or a new one; failures are not remembered."""
        known, now = self._found(question), self._clock()
        if known is not None and now < known.until:
            if now > known.refresh_at and question not in self._due:
                self._due.add(question)
                loop = asyncio.get_running_loop()
                loop.call_later(REFRESH_AFTER_SECONDS, self._refresh, question, ask, lifetime)
            return known.value
        task = self._asking.get(question)
        if task is None:
            task = self._start(question, ask, lifetime)
        # A caller that goes away must not fail the others that wait for the same answer.
        return await asyncio.shield(task)

    def _refresh(
        self,
        question: _Question,
        ask: Callable[[], Awaitable[_Value]],
        lifetime: Callable[[_Value], float],
    ) -> None:
        self._due.discard(question)
        if question not in self._asking:
            self._start(question, ask, lifetime)

    def _start(
        self,
        question: _Question,
        ask: Callable[[], Awaitable[_Value]],
        lifetime: Callable[[_Value], float],
    ) -> "asyncio.Task[_Value]":
        # Counted from before the question, so that no answer is used for longer than it says.
        task = asyncio.ensure_future(self._ask(question, ask, lifetime, self._clock()))
        self._asking[question] = task
        task.add_done_callback(functools.partial(self._answered, question))
        return task

    def _answered(self, question: _Question, task: asyncio.Task[_Value]) -> None:
        del self._asking[question]
        if not task.cancelled():
            # Looked at here, because everybody who asked may have gone away.
            task.exception()

    async def _ask(
        self,
        question: _Question,
        ask: Callable[[], Awaitable[_Value]],
        lifetime: Callable[[_Value], float],
        asked: float,
    ) -> _Value:
        answer = await ask()
        for each in (self._answers, self._refusals):
            each.pop(question, None)
        seconds = lifetime(answer)
        kept = self._answers if answer else self._refusals
        kept[question] = _Answer(answer, asked + seconds, asked + seconds / 2)
        while len(kept) > MAX_ENTRIES:
            kept.popitem(last=False)
        return answer


class Auth:
    """Authenticates by TokenReview and authorises by SubjectAccessReview."""

    def __init__(self, reviewer: Reviewer, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds."""
        self._reviewer = reviewer
        # Keyed by digest: a token is nowhere kept.
        self._callers: _Remembered[bytes, Caller | None] = _Remembered(clock)
        self._access: _Remembered[tuple[object, ...], bool] = _Remembered(clock)
        self._strangers: Counter[str] = Counter()
        """Tokens that are asked about for the first time, by the address that they come from."""

    def remembers(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether it is known whose the bearer token in the metadata is, or that it is nobody's;
        raises Unauthenticated.
        """
        return self._callers.has(_digest(bearer_token(metadata)))

    async def authenticate(
        self, metadata: Iterable[tuple[str, str | bytes]], address: str = ""
    ) -> Caller:
        """The caller whose bearer token is in the metadata; raises Unauthenticated, Unavailable,
        and Busy for too many tokens that are new. `address`: where they come from.
        """
        token = bearer_token(metadata)
        digest = _digest(token)
        ask: Callable[[], Awaitable[Caller | None]]
        ask = functools.partial(self._reviewer.review_token, token)
        if not self._callers.knows(digest):
            ask = self._counted(ask, address)
        try:
            caller = await self._callers.get(
                digest, ask, lambda found: TOKEN_SECONDS if found else REFUSAL_SECONDS
            )
        except OperatorError:
            raise Unavailable(
                "TOKEN_REVIEW_FAILED", "the API server could not check the token; try again"
            ) from None
        if caller is None:
            raise Unauthenticated(
                "INVALID_TOKEN", "the API server does not accept this token: it may have expired"
            )
        return caller

    def _counted(
        self, ask: Callable[[], Awaitable[Caller | None]], address: str
    ) -> Callable[[], Awaitable[Caller | None]]:
        """A question that has a place until it is answered, also when its caller goes away before;
        raises Busy when there is none.
        """
        strangers = self._strangers
        left = MAX_STRANGERS - strangers.total()
        if left <= 0 or strangers[address] >= min(MAX_STRANGERS_OF_ONE, left // _SHARE + 1):
            raise Busy("TOO_MANY_CALLS", "too many new tokens at the same time; try again")
        strangers[address] += 1

        async def asked() -> Caller | None:
            try:
                return await ask()
            finally:
                strangers[address] -= 1
                if not strangers[address]:
                    del strangers[address]

        return asked

    async def authorize(self, caller: Caller, method: str, namespace: str, name: str) -> None:
        """Raise Forbidden unless the caller has every right that the method needs, Unavailable
        when that cannot be asked. The answer is the same whether the session exists or not.
        """
        rights = RIGHTS.get(method)
        if not rights:
            raise Forbidden("NO_SUCH_RIGHT", "nobody may call this method")
        answers = await asyncio.gather(
            *(self._allowed(caller, right, namespace, name) for right in rights)
        )
        for right, allowed in zip(rights, answers, strict=True):
            if not allowed:
                raise Forbidden(
                    "MISSING_RIGHT",
                    f"{caller.username[:256]!r} lacks {right} in namespace {namespace}; "
                    "an administrator can grant it with a Role",
                    verb=right.verb,
                    resource=names.SESSIONS,
                    subresource=right.subresource,
                    namespace=namespace,
                )

    async def _allowed(self, caller: Caller, right: Right, namespace: str, name: str) -> bool:
        extra = tuple(sorted(caller.extra.items()))
        identity = (caller.username, caller.uid, caller.groups, extra)
        try:
            return await self._access.get(
                (*identity, right, namespace, name),
                lambda: self._reviewer.review_access(
                    caller, right.verb, names.SESSIONS, right.subresource, namespace, name
                ),
                lambda allowed: ACCESS_SECONDS if allowed else REFUSAL_SECONDS,
            )
        except OperatorError:
            raise Unavailable(
                "ACCESS_REVIEW_FAILED", "the API server could not check your rights; try again"
            ) from None


def whose_share(caller: Caller) -> str:
    """Whose places, connections and calls a second a caller takes: those of its namespace, where it
    is a ServiceAccount. Who may make one makes as many as they like.
    """
    if not caller.username.startswith(_SERVICE_ACCOUNT):
        return caller.username
    return caller.username.rpartition(":")[0]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def bearer_token(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The one bearer token in a call's metadata; raises Unauthenticated."""
    found = [value for key, value in metadata if key == "authorization"]
    if not found:
        raise Unauthenticated(
            "NO_TOKEN", "send a Kubernetes token as metadata `authorization: Bearer <token>`"
        )
    value = found[0]
    if len(found) > 1 or not isinstance(value, str):
        raise Unauthenticated("INVALID_TOKEN", "send one authorization entry only")
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN:
        raise Unauthenticated("INVALID_TOKEN", "authorization must be `Bearer <token>`")
    return token
