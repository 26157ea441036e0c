"""Two processes of the Sessions API: calls on the one that does not lead, and on none."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

from cloister_api.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from cloister_operator.errors import PermanentError
from cloister_operator.identity import Authority
from cloister_operator.metrics import REGISTRY
from cloister_operator.sessions_api.limits import Rate, RateLimits
from cloister_operator.sessions_api.server import SessionsServer
from support.sessions_parts import (
    ALICE,
    BOB,
    CAROL,
    NS,
    Clock,
    FakeBackend,
    FakeReviewer,
    channel,
    create,
    failure,
    get,
    made,
)


class Process:
    """One operator's Sessions API, with a part in the election that the test decides."""

    def __init__(self, authority: Authority, limits: RateLimits | None = None) -> None:
        self.backend, self.reviewer = FakeBackend(), FakeReviewer()
        self.leading = False
        self.follows = ""
        self.server = SessionsServer(
            self.backend, self.reviewer, authority, limits=limits, leadership=self
        )
        self.address = ""
        self.stub: Any = None

    def leads(self) -> bool:
        return self.leading

    def leader(self) -> str:
        return self.follows

    async def call(self, method: str, request: Any, token: str = ALICE, **given: Any) -> Any:
        metadata = [("authorization", f"Bearer {token}")]
        timeout = given.pop("timeout", 10)
        return await getattr(self.stub, method)(
            request, metadata=metadata, timeout=timeout, **given
        )


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Process, Process]]:
    """A leader, and one that follows it."""
    authority = Authority.create(datetime.now(UTC))
    limits = RateLimits(Rate(1, 3), Rate(0), Clock())
    both = Process(authority, limits), Process(authority)
    async with contextlib.AsyncExitStack() as stack:
        for each in both:
            port = await each.server.start("127.0.0.1:0")
            each.address = f"127.0.0.1:{port}"
            opened = await stack.enter_async_context(channel(port, authority))
            each.stub = sessions_pb2_grpc.SessionsStub(opened)
        leader, follower = both
        leader.leading, follower.follows = True, leader.address
        yield both
        for each in both:
            await each.server.stop(0)


async def test_every_call_but_watch_is_answered_by_the_leader(
    pair: tuple[Process, Process],
) -> None:
    leader, follower = pair
    leader.backend.sessions["s1"] = made()
    answer = await follower.call("Create", create(request_id="r"))
    assert answer.session.phase == sessions_pb2.Session.PHASE_RUNNING
    assert [each.caller for each in leader.backend.asked] == ["alice"]
    assert (await follower.call("Get", get())).name == "s1"
    listed = await follower.call("List", sessions_pb2.ListSessionsRequest(namespace=NS))
    assert [each.name for each in listed.sessions] == ["s1"]
    assert (await follower.call("Renew", sessions_pb2.RenewRequest(namespace=NS, name="s1"))).ca_pem
    await follower.call("Resume", sessions_pb2.ResumeRequest(namespace=NS, name="s1"))
    await follower.call("Delete", sessions_pb2.DeleteSessionRequest(namespace=NS, name="s1"))
    assert follower.backend.asked == []
    # It passes on what somebody asks whom the API server knows, and asks nothing else about them.
    assert set(follower.reviewer.token_reviews) == {ALICE}
    assert follower.reviewer.access_reviews == []


async def test_what_nobody_known_asks_is_not_passed_on(pair: tuple[Process, Process]) -> None:
    leader, follower = pair
    leader.backend.sessions["s1"] = made()
    failed = await failure(follower.call("Get", get(), token="nobodys"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN")
    assert leader.reviewer.token_reviews == []
    follower.reviewer.down = True
    # It cannot know then, and the leader decides.
    assert (await follower.call("Get", get(), token=CAROL)).name == "s1"


async def test_watch_is_answered_where_it_is_asked(pair: tuple[Process, Process]) -> None:
    leader, follower = pair
    follower.backend.changes.put_nowait(None)
    request = sessions_pb2.WatchSessionsRequest(namespace=NS)
    metadata = [("authorization", f"Bearer {ALICE}")]
    assert [each async for each in follower.stub.Watch(request, metadata=metadata)] == []
    assert leader.reviewer.token_reviews == []


async def test_the_leaders_refusal_comes_through_with_its_details(
    pair: tuple[Process, Process],
) -> None:
    leader, follower = pair
    leader.backend.raises = PermanentError("WrongThing", "is wrong", "spec.env[0].name")
    failed = await failure(follower.call("Create", create()))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (failed.reason, failed.fields) == ("WRONG_THING", {"env[0].name": "is wrong"})
    leader.backend.raises = None
    for _ in range(2):
        await follower.call("Create", create())
    limited = await failure(follower.call("Create", create()))
    assert (limited.code, limited.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert limited.retry_seconds == pytest.approx(1.0)


async def test_the_leader_asks_whose_the_token_is(pair: tuple[Process, Process]) -> None:
    leader, follower = pair
    failed = await failure(follower.call("Create", create(), token="nobody's"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN")
    failed = await failure(follower.call("Create", create(), token=BOB))
    assert (failed.code, failed.reason) == (grpc.StatusCode.PERMISSION_DENIED, "MISSING_RIGHT")
    missing = await failure(follower.stub.Create(create(), timeout=10))
    assert missing.reason == "NO_TOKEN"
    assert leader.backend.asked == []


async def test_the_callers_deadline_goes_along(pair: tuple[Process, Process]) -> None:
    leader, follower = pair
    leader.backend.never_settles = True
    leader.backend.settles = made(phase="Pending")
    failed = await failure(follower.call("Create", create(), timeout=0.6))
    # The leader's own sentence, and not gRPC's.
    assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "is not running yet" in failed.message


async def test_a_caller_who_goes_away_ends_the_call_at_the_leader(
    pair: tuple[Process, Process],
) -> None:
    leader, follower = pair
    leader.backend.hold = asyncio.Event()
    calling = asyncio.create_task(follower.call("Create", create()))
    assert await leader.backend.entered.get() == "Create"
    calling.cancel()
    assert await leader.backend.left.get() == "Create"


async def test_without_a_leader_reads_are_answered_and_writes_are_told_when_to_come_again(
    pair: tuple[Process, Process],
) -> None:
    _, follower = pair
    follower.follows = ""
    follower.backend.sessions["s1"] = made()
    assert (await follower.call("Get", get())).name == "s1"
    assert await follower.call("List", sessions_pb2.ListSessionsRequest(namespace=NS))
    assert await follower.call("Renew", sessions_pb2.RenewRequest(namespace=NS, name="s1"))
    for method, request in (
        ("Create", create()),
        ("Suspend", sessions_pb2.SuspendRequest(namespace=NS, name="s1")),
        ("Resume", sessions_pb2.ResumeRequest(namespace=NS, name="s1")),
        ("Delete", sessions_pb2.DeleteSessionRequest(namespace=NS, name="s1")),
    ):
        failed = await failure(follower.call(method, request))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_LEADER")
        assert failed.retry_seconds == 0.5
    assert follower.backend.asked == []
    assert "s1" in follower.backend.sessions


async def test_rights_are_asked_also_where_a_read_is_answered_without_a_leader(
    pair: tuple[Process, Process],
) -> None:
    _, follower = pair
    follower.follows = ""
    follower.backend.sessions["s1"] = made()
    failed = await failure(follower.call("Get", get(), token=BOB))
    assert failed.code is grpc.StatusCode.PERMISSION_DENIED


async def test_a_leader_that_does_not_answer_is_as_none(pair: tuple[Process, Process]) -> None:
    leader, follower = pair
    await follower.call("Create", create())
    await leader.server.stop(0)
    follower.backend.sessions["s1"] = made()
    failed = await failure(follower.call("Create", create()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "LEADER_LOST")
    assert failed.retry_seconds == 0.5
    assert (await follower.call("Get", get())).name == "s1"


async def test_a_call_under_way_when_its_leader_dies_is_told_to_repeat(
    pair: tuple[Process, Process],
) -> None:
    leader, follower = pair
    leader.backend.hold = asyncio.Event()
    calling = asyncio.create_task(follower.call("Create", create()))
    await leader.backend.entered.get()
    await leader.server.stop(0)
    failed = await failure(calling)
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "LEADER_LOST")


async def test_a_call_is_forwarded_once_only(pair: tuple[Process, Process]) -> None:
    former, follower = pair
    former.leading = False
    # Each takes the other for the leader.
    former.follows = follower.address
    failed = await failure(follower.call("Create", create()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_LEADER")
    former.backend.sessions["s1"] = made()
    assert (await follower.call("Get", get())).name == "s1"


async def test_calls_under_way_end_well_when_another_one_leads(
    pair: tuple[Process, Process],
) -> None:
    first, second = pair
    first.backend.hold = asyncio.Event()
    calling = asyncio.create_task(second.call("Create", create()))
    await first.backend.entered.get()
    first.leading, second.leading = False, True
    second.follows, first.follows = "", second.address
    assert await second.call("Create", create())
    assert await first.call("Create", create())
    first.backend.hold.set()
    assert (await calling).session.name == "s1"
    assert (len(first.backend.asked), len(second.backend.asked)) == (1, 2)


async def test_nobody_but_our_own_ca_passes_for_the_leader(pair: tuple[Process, Process]) -> None:
    _, follower = pair
    stranger = Process(Authority.create(datetime.now(UTC)))
    stranger.leading = True
    port = await stranger.server.start("127.0.0.1:0")
    follower.follows = f"127.0.0.1:{port}"
    failed = await failure(follower.call("Create", create()))
    assert failed.reason == "LEADER_LOST"
    assert stranger.reviewer.token_reviews == []
    await stranger.server.stop(0)


def _forwarded(outcome: str) -> float:
    name = "cloister_sessions_api_forwarded_total"
    return REGISTRY.get_sample_value(name, {"method": "Create", "outcome": outcome}) or 0.0


async def test_what_became_of_forwarded_calls_is_counted(pair: tuple[Process, Process]) -> None:
    leader, follower = pair
    outcomes = ("answered", "lost", "no_leader")
    before = [_forwarded(each) for each in outcomes]

    def counted() -> list[float]:
        return [_forwarded(each) - so_far for each, so_far in zip(outcomes, before, strict=True)]

    await leader.call("Create", create())
    assert counted() == [0, 0, 0], "who leads forwards nothing"
    await follower.call("Create", create())
    # A refusal is an answer, too.
    await failure(follower.call("Create", create(), token=BOB))
    assert counted() == [2, 0, 0]
    await leader.server.stop(0)
    await failure(follower.call("Create", create()))
    assert counted() == [2, 1, 0]
    follower.follows = ""
    await failure(follower.call("Create", create()))
    assert counted() == [2, 1, 1]
