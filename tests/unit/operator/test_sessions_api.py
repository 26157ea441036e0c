"""Who may call the Sessions API, and how often, over a real TLS connection."""

import asyncio
from typing import Any
from unittest import mock

import grpc
import pytest

from cloister_api.sessions.v1 import sessions_pb2
from cloister_operator import logs
from cloister_operator.api.backend import SessionChange
from cloister_operator.sessions_api.auth import (
    ACCESS_SECONDS,
    MAX_ENTRIES,
    MAX_STRANGERS,
    MAX_STRANGERS_OF_ONE,
    RIGHTS,
    TOKEN_SECONDS,
    Auth,
)
from cloister_operator.sessions_api.guard import Guard
from cloister_operator.sessions_api.status import Busy, Unauthenticated
from support.sessions_parts import (
    ALICE,
    BOB,
    CAROL,
    EVERY_CALL,
    NS,
    Api,
    Clock,
    FakeReviewer,
    create,
    failure,
    get,
    made,
    serving,
)

# Who may call.


@pytest.mark.parametrize(("method", "request_"), EVERY_CALL)
async def test_nobody_gets_in_without_a_valid_token(api: Api, method: str, request_: Any) -> None:
    failed = await failure(api.call(method, request_, token=None))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "NO_TOKEN")
    failed = await failure(api.call(method, request_, token="stolen"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN")
    assert not api.reviewer.access_reviews
    assert not api.backend.asked


@pytest.mark.parametrize(
    "metadata",
    [
        [("authorization", "Bearer ")],
        [("authorization", "Basic YTpi")],
        [("authorization", ALICE)],
        [("authorization", f"Bearer {ALICE}"), ("authorization", f"Bearer {ALICE}")],
        [("authorization", "Bearer " + "x" * 17_000)],
    ],
)
async def test_malformed_authorization(api: Api, metadata: list[tuple[str, str]]) -> None:
    failed = await failure(api.stub.Get(get(), metadata=metadata, timeout=10))
    assert failed.code is grpc.StatusCode.UNAUTHENTICATED
    assert not api.reviewer.token_reviews


@pytest.mark.parametrize(
    ("method", "request_", "rights"),
    [
        (method, request, rights)
        for (method, request), rights in zip(
            EVERY_CALL,
            [
                [("create", ""), ("create", "exec")],
                [("get", "")],
                [("list", "")],
                [("get", ""), ("create", "exec")],
                [("update", "")],
                [("update", ""), ("create", "exec")],
                [("get", "")],
                [("delete", "")],
            ],
            strict=True,
        )
    ],
)
async def test_each_right_is_needed(
    api: Api, method: str, request_: Any, rights: list[tuple[str, str]]
) -> None:
    for right in rights:
        api.clock.now += 60
        api.reviewer.missing = {right}
        failed = await failure(api.call(method, request_))
        assert (failed.code, failed.reason) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "MISSING_RIGHT",
        )
        assert (failed.metadata["verb"], failed.metadata["subresource"]) == right
    assert not api.backend.asked


async def test_a_missing_right_does_not_tell_what_exists(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    there = await failure(api.call("Get", get("s1"), token=BOB))
    absent = await failure(api.call("Get", get("s2"), token=BOB))
    assert there == absent
    assert there.code is grpc.StatusCode.PERMISSION_DENIED


async def test_rights_are_asked_for_the_named_session_in_its_namespace(api: Api) -> None:
    await failure(api.call("Get", get("s9", namespace="team-b")))
    assert api.reviewer.access_reviews == [("alice", "get", "sessions", "", "team-b", "s9")]


async def test_when_the_api_server_cannot_answer_nobody_gets_in(api: Api) -> None:
    api.reviewer.down = True
    failed = await failure(api.call("Create", create()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "TOKEN_REVIEW_FAILED")
    assert failed.retry_seconds == 1.0
    api.reviewer.down = False
    await api.call("Create", create())
    api.reviewer.down = True
    api.clock.now += ACCESS_SECONDS  # rights are forgotten, the token is not
    failed = await failure(api.call("Create", create()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "ACCESS_REVIEW_FAILED")
    assert len(api.backend.asked) == 1


async def test_reviews_are_remembered_for_moments_only(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    for _ in range(3):
        await api.call("Get", get())
    assert (len(api.reviewer.token_reviews), len(api.reviewer.access_reviews)) == (1, 1)
    api.clock.now += ACCESS_SECONDS
    await api.call("Get", get())
    assert len(api.reviewer.access_reviews) == 2
    del api.reviewer.valid[ALICE]
    api.clock.now += TOKEN_SECONDS
    assert (await failure(api.call("Get", get()))).code is grpc.StatusCode.UNAUTHENTICATED


async def test_refusals_are_forgotten_soon(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    api.reviewer.missing = {("get", "")}
    await failure(api.call("Get", get()))
    await failure(api.call("Get", get(), token="new"))
    api.reviewer.missing.clear()
    api.reviewer.valid["new"] = "alice"
    await failure(api.call("Get", get()))
    api.clock.now += 2
    await api.call("Get", get())
    await api.call("Get", get(), token="new")


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("authorization", f"Bearer {token}")]


async def test_strangers_keep_neither_places_nor_the_api_server_from_others() -> None:
    reviewer = FakeReviewer()
    auth = Auth(reviewer, Clock())
    await auth.authenticate(bearer(ALICE))
    reviewer.slow.clear()

    async def guesses(address: str, count: int) -> list[asyncio.Task[Any]]:
        """Those that the API server is asked about; the others are refused at once."""
        tasks = [
            asyncio.create_task(auth.authenticate(bearer(f"{address}-{each}"), address))
            for each in range(count)
        ]
        before = len(reviewer.token_reviews)
        waiting = {each for each in tasks if not each.done()}
        while len(reviewer.token_reviews) - before < len(waiting):
            done, waiting = await asyncio.wait(waiting, timeout=0.01)
            for each in done:
                with pytest.raises(Busy):
                    each.result()
        return list(waiting)

    asked = await guesses("10.0.0.1", 40)
    assert len(asked) == MAX_STRANGERS_OF_ONE
    for each in asked:
        # Who goes away leaves the question behind.
        each.cancel()
    with pytest.raises(Busy):
        await auth.authenticate(bearer("another"), "10.0.0.1")
    for last in range(2, 6):
        asked += await guesses(f"10.0.0.{last}", 40)
    assert len(asked) < MAX_STRANGERS
    assert (await auth.authenticate(bearer(ALICE), "10.0.0.1")).username == "alice"
    # Nor do several addresses together keep out who comes from another one.
    assert (await auth.authenticate(bearer(BOB), "10.0.0.9")).username == "bob"
    reviewer.slow.set()
    await asyncio.gather(*asked, return_exceptions=True)
    with pytest.raises(Unauthenticated):
        await auth.authenticate(bearer("another"), "10.0.0.1")


async def test_calls_whose_token_is_asked_about_leave_places_to_others() -> None:
    """They are one question to the API server, however many there are."""
    async with serving(max_calls=8) as api:
        api.backend.sessions["s1"] = made()
        await api.call("Get", get())
        api.reviewer.slow.clear()
        asked = {asyncio.create_task(failure(api.call("Get", get(), "guess"))) for _ in range(8)}
        refused: set[asyncio.Task[Any]] = set()
        while len(refused) < 4:
            done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            refused |= done
        assert {each.result().reason for each in refused} == {"TOO_MANY_CALLS"}
        assert api.reviewer.token_reviews.count("guess") == 1
        await api.call("Get", get())
        api.reviewer.slow.set()
        assert {each.reason for each in await asyncio.gather(*asked)} == {"INVALID_TOKEN"}


async def test_an_address_is_one_whatever_a_connection_came_over() -> None:
    reviewer = FakeReviewer()
    guard = Guard(Auth(reviewer, Clock()))
    reviewer.slow.clear()

    def guess(number: int, peer: str) -> asyncio.Task[Any]:
        context = mock.Mock()
        context.invocation_metadata.return_value = bearer(f"guess-{number}")
        context.peer.return_value = peer
        return asyncio.create_task(guard._authenticate(context))

    spelled = ("ipv4:10.0.0.1:9", "ipv6:[::ffff:10.0.0.1]:9", "ipv6:%5B::ffff:10.0.0.1%5D:9")
    asked = [guess(each, spelled[each % 3]) for each in range(MAX_STRANGERS_OF_ONE)]
    for number, peer in enumerate(spelled, MAX_STRANGERS_OF_ONE):
        with pytest.raises(Busy):
            await guess(number, peer)
    reviewer.slow.set()
    for each in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(each, Unauthenticated)


async def test_who_is_refused_without_end_makes_nobody_be_asked_about_again() -> None:
    reviewer = FakeReviewer()
    auth = Auth(reviewer, Clock())
    await auth.authenticate(bearer(ALICE))
    for each in range(MAX_ENTRIES + 1):
        with pytest.raises(Unauthenticated):
            await auth.authenticate(bearer(f"guess-{each}"))
    await auth.authenticate(bearer(ALICE))
    assert reviewer.token_reviews.count(ALICE) == 1


async def test_equal_questions_at_the_same_time_are_one(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    await asyncio.gather(*(api.call("Get", get()) for _ in range(2)))
    assert api.reviewer.token_reviews == [ALICE]


async def test_a_watch_ends_when_the_right_is_taken_away(api: Api) -> None:
    request = sessions_pb2.WatchSessionsRequest(namespace=NS, name="s1")
    call = api.stub.Watch(request, metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)
    api.backend.changes.put_nowait(SessionChange(synced=True))
    assert (await call.read()).HasField("synced")
    api.reviewer.missing = {("watch", "")}
    api.clock.now += ACCESS_SECONDS
    assert (await failure(call.read())).reason == "MISSING_RIGHT"


async def test_a_watch_ends_when_its_token_is_revoked(api: Api) -> None:
    request = sessions_pb2.WatchSessionsRequest(namespace=NS, name="s1")
    call = api.stub.Watch(request, metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)
    await call.initial_metadata()
    del api.reviewer.valid[ALICE]
    api.clock.now += TOKEN_SECONDS
    assert (await failure(call.read())).reason == "INVALID_TOKEN"


# The server itself.


async def test_too_many_calls_at_once_are_asked_to_come_back(api: Api) -> None:
    api.backend.hold = asyncio.Event()
    api.reviewer.valid["of-dave"] = "dave"
    api.reviewer.allowed.add("dave")
    running = []
    # What one caller may have depends on who came before.
    for each in (ALICE, ALICE, CAROL, "of-dave"):
        running.append(asyncio.ensure_future(api.call("Create", create(), each)))
        await api.backend.entered.get()
    failed = await failure(api.call("Get", get()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    assert failed.retry_seconds == 1.0
    api.backend.hold.set()
    await asyncio.gather(*running)
    api.backend.sessions["s1"] = made()
    await api.call("Get", get())


async def test_one_caller_does_not_keep_the_others_out(api: Api) -> None:
    api.backend.hold = asyncio.Event()
    api.backend.sessions["s1"] = made()
    running = [asyncio.ensure_future(api.call("Create", create())) for _ in range(2)]
    for _ in running:
        await api.backend.entered.get()
    failed = await failure(api.call("Get", get()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_CALLS")
    await api.call("Get", get(), CAROL)
    api.backend.hold.set()
    await asyncio.gather(*running)
    await api.call("Get", get())


async def test_who_has_no_rights_keeps_nobody_out_while_the_api_server_is_slow(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    await api.call("Get", get(), CAROL)
    api.reviewer.slow_access.clear()
    asked = [asyncio.ensure_future(api.call("Get", get(f"s{each}"), BOB)) for each in range(6)]
    waiting = set(asked)
    while len(waiting) > 2:
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await api.call("Get", get(), CAROL)
    api.reviewer.slow_access.set()
    refused = [each.reason for each in [await failure(one) for one in asked]]
    assert sorted(refused) == [*["MISSING_RIGHT"] * 2, *["TOO_MANY_CALLS"] * 4]


async def test_watches_do_not_take_the_places_of_calls(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    request = sessions_pb2.WatchSessionsRequest(namespace=NS)
    metadata = [("authorization", f"Bearer {ALICE}")]
    first = api.stub.Watch(request, metadata=metadata, timeout=10)
    await first.initial_metadata()
    second = api.stub.Watch(request, metadata=metadata, timeout=10)
    assert (await failure(second.read())).reason == "TOO_MANY_CALLS"
    await api.call("Get", get())
    first.cancel()


async def test_an_abandoned_call_gives_its_place_back(api: Api) -> None:
    api.backend.hold = asyncio.Event()
    for _ in range(6):
        call = api.stub.Create(create(), metadata=[("authorization", f"Bearer {ALICE}")])
        await api.backend.entered.get()
        call.cancel()
        await api.backend.left.get()
    api.backend.hold.set()
    await api.call("Create", create())


async def test_callers_are_logged_and_tokens_are_not(
    api: Api, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    caplog.set_level("DEBUG")
    fields = logs._About()
    caplog.handler.addFilter(fields)
    request.addfinalizer(lambda: caplog.handler.removeFilter(fields))
    await api.call("Create", create(name="s1", env={"KEY": "secret-value"}))
    await failure(api.call("Create", create(), token=BOB))
    assert "Create team-a/s1 by alice" in caplog.text
    assert "refused to bob" in caplog.text
    made = next(each for each in caplog.records if "by alice" in each.getMessage())
    assert (made.__dict__["namespace"], made.__dict__["session"]) == ("team-a", "s1")
    refused = next(each for each in caplog.records if "refused to" in each.getMessage())
    assert refused.__dict__["namespace"] == "team-a"
    for secret in (ALICE, BOB, "secret-value", "PRIVATE KEY"):
        assert secret not in caplog.text


def test_every_method_has_its_rights() -> None:
    service = sessions_pb2.DESCRIPTOR.services_by_name["Sessions"]
    assert set(RIGHTS) == {each.name for each in service.methods}
