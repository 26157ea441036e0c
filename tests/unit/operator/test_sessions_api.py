"""The Sessions API over a real TLS connection, with a backend and a reviewer of the tests' own."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock

import grpc
import pytest
from cryptography import x509
from google.protobuf.duration_pb2 import Duration

from cloister_api.sessions.v1 import sessions_pb2, sessions_pb2_grpc
from cloister_operator import logs
from cloister_operator.api.backend import EgressRecord, SessionChange
from cloister_operator.errors import PermanentError, TransientError
from cloister_operator.identity import Authority
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
from cloister_operator.sessions_api.server import SessionsServer, _Renewed
from cloister_operator.sessions_api.status import Busy, Unauthenticated
from support.sessions_parts import (
    ALICE,
    BOB,
    CAROL,
    NS,
    UID,
    Api,
    Clock,
    FakeBackend,
    FakeReviewer,
    channel,
    create,
    failure,
    get,
    made,
    not_ready,
    serving,
)


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving(max_calls=4, max_watches=1) as served:
        yield served


EVERY_CALL: list[tuple[str, Any]] = [
    ("Create", create()),
    ("Get", get()),
    ("List", sessions_pb2.ListSessionsRequest(namespace=NS)),
    ("Renew", sessions_pb2.RenewRequest(namespace=NS, name="s1")),
    ("Suspend", sessions_pb2.SuspendRequest(namespace=NS, name="s1")),
    ("Resume", sessions_pb2.ResumeRequest(namespace=NS, name="s1")),
    ("GetEgress", sessions_pb2.GetEgressRequest(namespace=NS, name="s1")),
    ("Delete", sessions_pb2.DeleteSessionRequest(namespace=NS, name="s1")),
]


# What the calls do.


async def test_create_answers_with_a_running_session_and_its_certificate(api: Api) -> None:
    answer = await api.call(
        "Create",
        create(
            name="s1",
            request_id="r-1",
            env={"A": "1"},
            files=[sessions_pb2.File(path="/workspace/in.txt", content=b"x")],
            idle_timeout=Duration(seconds=60),
            max_lifetime=Duration(seconds=600),
        ),
    )
    assert answer.session.phase == sessions_pb2.Session.PHASE_RUNNING
    assert answer.session.endpoint == "10.0.0.9:7443"
    assert answer.session.server_name == f"session-{UID}.sandbox.cloister.dev"
    assert answer.session.expires_at.ToDatetime(UTC) == api.backend.expires
    (new,) = api.backend.asked
    assert (new.namespace, new.environment, new.name, new.request_id) == (NS, "data", "s1", "r-1")
    assert (new.idle_timeout, new.max_lifetime) == (timedelta(minutes=1), timedelta(minutes=10))
    assert [(each.path, each.mode) for each in new.files] == [("/workspace/in.txt", 0o644)]
    certificate = x509.load_pem_x509_certificate(answer.credentials.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"session:{UID}"]
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)
    assert answer.credentials.ca_pem == api.authority.ca_pem


async def test_a_certificate_does_not_outlive_its_session(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    api.backend.expires = datetime.now(UTC) + timedelta(minutes=7)
    answer = await api.call("Renew", sessions_pb2.RenewRequest(namespace=NS, name="s1"))
    assert answer.expires_at.ToDatetime(UTC) <= api.backend.expires
    api.backend.expires = datetime.now(UTC) - timedelta(seconds=1)
    failed = await failure(api.call("Renew", sessions_pb2.RenewRequest(namespace=NS, name="s1")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "MAX_LIFETIME")


async def test_each_renewal_is_another_key(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    request = sessions_pb2.RenewRequest(namespace=NS, name="s1")
    first, second = await api.call("Renew", request), await api.call("Renew", request)
    assert first.private_key_pem != second.private_key_pem


async def test_a_repeated_create_is_the_same_session(api: Api) -> None:
    first = await api.call("Create", create(request_id="again"))
    second = await api.call("Create", create(request_id="again"))
    assert first.session.uid == second.session.uid
    assert [each.request_id for each in api.backend.asked] == ["again", "again"]


async def test_the_same_request_id_with_another_payload_is_refused(api: Api) -> None:
    api.backend.raises = PermanentError(
        "AlreadyExists", "another session was made with this request id", "requestId"
    )
    failed = await failure(api.call("Create", create(request_id="again")))
    assert failed.code is grpc.StatusCode.ALREADY_EXISTS
    assert failed.reason == "ALREADY_EXISTS"


async def test_a_create_that_has_no_pod_in_time_names_its_session(api: Api) -> None:
    api.backend.never_settles = True
    api.backend.settles = made("s7", "Pending", conditions=not_ready("Starting", "A pod starts."))
    request = create(name="s7", wait=Duration(nanos=20_000_000))
    failed = await failure(api.call("Create", request))
    assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert failed.metadata["session"] == "s7"
    assert failed.reason == "STARTING"
    assert "A pod starts." in failed.message


async def test_the_callers_own_deadline_is_answered_before_it_strikes(api: Api) -> None:
    api.backend.never_settles = True
    api.backend.settles = made("s7", "Pending")
    metadata = [("authorization", f"Bearer {ALICE}")]
    failed = await failure(api.stub.Create(create(name="s7"), metadata=metadata, timeout=1))
    assert (failed.code, failed.metadata["session"]) == (grpc.StatusCode.DEADLINE_EXCEEDED, "s7")


async def test_a_session_that_ended_at_once_says_why(api: Api) -> None:
    api.backend.settles = made(
        phase="Failed", conditions=not_ready("SetupFailed", "pip could not find numpi.")
    )
    failed = await failure(api.call("Create", create()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SETUP_FAILED")
    assert "pip could not find numpi." in failed.message
    assert failed.metadata["phase"] == "Failed"


async def test_a_session_that_must_wait_for_others_may_be_retried(api: Api) -> None:
    api.backend.settles = made(
        phase="Pending", conditions=not_ready("Queued", "All 2 sessions are in use.")
    )
    failed = await failure(api.call("Create", create()))
    assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failed.retry_seconds == 1.0


async def test_a_session_deleted_while_it_starts(api: Api) -> None:
    api.backend.settles = None
    assert (await failure(api.call("Create", create()))).code is grpc.StatusCode.NOT_FOUND


async def test_get_and_list(api: Api) -> None:
    api.backend.sessions = {"b": made("b"), "a": made("a", "Pending")}
    assert (await api.call("Get", get("a"))).phase == sessions_pb2.Session.PHASE_PENDING
    request = sessions_pb2.ListSessionsRequest(namespace=NS)
    assert [each.name for each in (await api.call("List", request)).sessions] == ["a", "b"]
    request.environment = "other"
    assert not (await api.call("List", request)).sessions
    failed = await failure(api.call("Get", get("none")))
    assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


async def test_what_a_session_tried_to_reach(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    request = sessions_pb2.GetEgressRequest(namespace=NS, name="s1")
    assert not (await api.call("GetEgress", request)).decisions
    first, last = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)
    record = EgressRecord("a.example", 443, False, "HostNotAllowed", 3, first, last, 10, 20)
    api.backend.reached["s1"] = [record]
    (got,) = (await api.call("GetEgress", request)).decisions
    assert (got.host, got.port, got.allowed, got.reason) == (
        *("a.example", 443, False, "HostNotAllowed"),
    )
    assert (got.count, got.bytes_sent, got.bytes_received) == (3, 10, 20)
    assert (got.first.ToDatetime(UTC), got.last.ToDatetime(UTC)) == (first, last)
    failed = await failure(
        api.call("GetEgress", sessions_pb2.GetEgressRequest(namespace=NS, name="s2"))
    )
    assert failed.code is grpc.StatusCode.NOT_FOUND


async def test_delete(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    request = sessions_pb2.DeleteSessionRequest(namespace=NS, name="s1")
    await api.call("Delete", request)
    assert (await failure(api.call("Delete", request))).code is grpc.StatusCode.NOT_FOUND


SUSPEND = sessions_pb2.SuspendRequest(namespace=NS, name="s1")
RESUME = sessions_pb2.ResumeRequest(namespace=NS, name="s1", wait=Duration(nanos=20_000_000))
AT_REST = not_ready("IdleTimeout", "No tool ran for 600 s. Resume it to go on.")


async def test_suspend_answers_once_the_session_has_no_pod(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    api.backend.settles = made(phase="Suspended", conditions=AT_REST, restarts=2)
    answer = await api.call("Suspend", SUSPEND)
    assert api.backend.states == [("s1", "Suspended")]
    assert answer.phase == sessions_pb2.Session.PHASE_SUSPENDED
    assert (answer.reason, answer.pod_name, answer.endpoint) == ("IdleTimeout", "", "")
    assert answer.restarts == 2


async def test_a_session_that_cannot_be_suspended_says_why(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    declined = not_ready("WorkspaceNotPersistent", "It goes on running.")
    api.backend.settles = made(conditions=[declined[0] | {"type": "Suspended"}])
    failed = await failure(api.call("Suspend", SUSPEND))
    assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failed.reason == "WORKSPACE_NOT_PERSISTENT"
    assert "It goes on running." in failed.message
    api.backend.raises = PermanentError("WorkspaceNotPersistent", "It would lose its work.")
    failed = await failure(api.call("Suspend", SUSPEND))
    assert failed.reason == "WORKSPACE_NOT_PERSISTENT"


async def test_a_suspension_that_takes_long_is_told_as_that(api: Api) -> None:
    api.backend.sessions["s1"] = made()
    api.backend.settles = made()
    failed = await failure(api.call("Suspend", SUSPEND))
    assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "SUSPENDING")


async def test_a_session_that_ended_is_neither_suspended_nor_resumed(api: Api) -> None:
    over = made(phase="Terminated", conditions=not_ready("MaxLifetime", "It lived for 3600 s."))
    api.backend.sessions["s1"] = api.backend.settles = over
    for method, request in (("Suspend", SUSPEND), ("Resume", RESUME)):
        failed = await failure(api.call(method, request))
        assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
        assert failed.reason == "MAX_LIFETIME"


async def test_resume_answers_with_a_running_session_and_its_certificate(api: Api) -> None:
    api.backend.sessions["s1"] = made(phase="Suspended", conditions=AT_REST)
    api.backend.settles = made(restarts=1)
    answer = await api.call("Resume", RESUME)
    assert api.backend.states == [("s1", "Running")]
    assert (answer.session.phase, answer.session.restarts) == (
        sessions_pb2.Session.PHASE_RUNNING,
        1,
    )
    certificate = x509.load_pem_x509_certificate(answer.credentials.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [f"session:{UID}"]


@pytest.mark.parametrize("phase", ["Suspended", "Pending"])
async def test_a_resume_that_has_no_pod_in_time_goes_on(api: Api, phase: str) -> None:
    api.backend.sessions["s1"] = made(phase="Suspended", conditions=AT_REST)
    api.backend.settles = made(phase=phase, conditions=not_ready("Starting", "A pod starts."))
    api.backend.never_settles = True
    failed = await failure(api.call("Resume", RESUME))
    assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STARTING")
    assert failed.metadata["phase"] == phase


async def test_what_is_not_there_is_neither_suspended_nor_resumed(api: Api) -> None:
    for method, request in (("Suspend", SUSPEND), ("Resume", RESUME)):
        failed = await failure(api.call(method, request))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
    too_long = sessions_pb2.ResumeRequest(namespace=NS, name="s1", wait=Duration(seconds=601))
    assert list((await failure(api.call("Resume", too_long))).fields) == ["wait"]


async def test_a_suspended_session_has_no_certificate_to_renew(api: Api) -> None:
    api.backend.sessions["s1"] = made(phase="Suspended", conditions=AT_REST)
    request = sessions_pb2.RenewRequest(namespace=NS, name="s1")
    failed = await failure(api.call("Renew", request))
    assert failed.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (failed.reason, failed.metadata["phase"]) == ("IDLE_TIMEOUT", "Suspended")
    assert "Resume it" in failed.message


async def test_watch_hands_on_each_change_until_the_caller_leaves(api: Api) -> None:
    request = sessions_pb2.WatchSessionsRequest(namespace=NS)
    call = api.stub.Watch(request, metadata=[("authorization", f"Bearer {ALICE}")])
    for change in (
        SessionChange(session=made("a")),
        SessionChange(synced=True),
        SessionChange(deleted=(NS, "a")),
    ):
        api.backend.changes.put_nowait(change)
    events = [await call.read() for _ in range(3)]
    assert [each.WhichOneof("event") for each in events] == ["session", "synced", "deleted"]
    assert events[2].deleted.name == "a"
    assert api.backend.watchers == 1
    call.cancel()
    assert await api.backend.left.get() == "Watch"
    assert api.backend.watchers == 0
    again = api.stub.Watch(request, metadata=[("authorization", f"Bearer {ALICE}")])
    api.backend.changes.put_nowait(None)
    assert await again.read() is grpc.aio.EOF


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
    await asyncio.gather(*(api.call("Get", get()) for _ in range(4)))
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


# Bad input.

LONG = "x" * 64
BAD_CREATES: list[tuple[dict[str, Any], str]] = [
    ({"namespace": ""}, "namespace"),
    ({"namespace": "Team_A"}, "namespace"),
    ({"namespace": LONG}, "namespace"),
    ({"environment": ""}, "environment"),
    ({"environment": "../x"}, "environment"),
    ({"environment": "e" * 41}, "environment"),
    ({"name": "-a"}, "name"),
    ({"name": "a.b"}, "name"),
    ({"name": LONG}, "name"),
    ({"request_id": "a b"}, "request_id"),
    ({"request_id": "x" * 65}, "request_id"),
    ({"env": {"1A": ""}}, "env"),
    ({"env": {"": "x"}}, "env"),
    ({"env": {"A": "a\0b"}}, "env[A]"),
    ({"env": {"LD_PRELOAD": "x"}}, "env[LD_PRELOAD]"),
    ({"env": {"CLOISTER_POD_UID": "x"}}, "env[CLOISTER_POD_UID]"),
    ({"env": {"A": "x" * 32_769}}, "env[A]"),
    ({"env": {f"A{index}": "" for index in range(101)}}, "env"),
    ({"files": [{"path": "relative"}]}, "files[0].path"),
    ({"files": [{"path": "/etc/passwd"}]}, "files[0].path"),
    ({"files": [{"path": "/workspace/../etc/x"}]}, "files[0].path"),
    ({"files": [{"path": "/workspace/a\nb"}]}, "files[0].path"),
    ({"files": [{"path": "/workspace/" + "x" * 512}]}, "files[0].path"),
    ({"files": [{"path": "/workspace/a"}, {"path": "/workspace/a"}]}, "files[1].path"),
    ({"files": [{"path": "/workspace/a/b"}, {"path": "/workspace/a"}]}, "files[0].path"),
    ({"files": [{"path": "/workspace/a", "mode": 0o4755}]}, "files[0].mode"),
    ({"files": [{"path": "/workspace/a", "content": b"\xff\xfe"}]}, "files[0].content"),
    ({"files": [{"path": "/workspace/a", "content": b"x" * 262_145}]}, "files[0].content"),
    (
        {"files": [{"path": f"/workspace/{i}", "content": b"x" * 200_000} for i in range(4)]},
        "files",
    ),
    ({"files": [{"path": f"/workspace/{i}"} for i in range(65)]}, "files"),
    ({"idle_timeout": Duration(seconds=0)}, "idle_timeout"),
    ({"idle_timeout": Duration(seconds=-5)}, "idle_timeout"),
    ({"max_lifetime": Duration(seconds=2**60)}, "max_lifetime"),
    ({"idle_timeout": Duration(seconds=9), "max_lifetime": Duration(seconds=8)}, "idle_timeout"),
    ({"wait": Duration(seconds=-1)}, "wait"),
    ({"wait": Duration(seconds=601)}, "wait"),
]


@pytest.mark.parametrize(("given", "field_"), BAD_CREATES)
async def test_wrong_input_names_its_field(api: Api, given: dict[str, Any], field_: str) -> None:
    failed = await failure(api.call("Create", create(**given)))
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.reason == "INVALID_FIELD"
    assert list(failed.fields) == [field_]
    assert not api.backend.asked


async def test_all_that_is_wrong_is_named_at_once(api: Api) -> None:
    failed = await failure(
        api.call("Create", create(environment="", request_id=" ", env={"-": ""}))
    )
    assert set(failed.fields) == {"environment", "request_id", "env"}


async def test_a_session_must_be_named_where_it_is_meant(api: Api) -> None:
    for method, request in EVERY_CALL:
        if method in ("Create", "List"):
            continue
        nameless = type(request)(namespace=NS)
        assert list((await failure(api.call(method, nameless))).fields) == ["name"]


async def test_a_request_that_is_too_large_is_refused(api: Api) -> None:
    files = [sessions_pb2.File(path="/workspace/a", content=b"x" * 5_000_000)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.call("Create", create(files=files))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_request_that_is_packed_is_refused(api: Api) -> None:
    """A few bytes could become megabytes, again and again."""
    request = create(name="x" * 100_000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.call("Create", request, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# What the backend says.


@pytest.mark.parametrize(
    ("error", "code", "reason", "fields"),
    [
        (
            PermanentError(
                "EnvironmentNotFound", "there is no such Environment", "environmentName"
            ),
            grpc.StatusCode.NOT_FOUND,
            "ENVIRONMENT_NOT_FOUND",
            [],
        ),
        (
            PermanentError("AlreadyExists", "the name is taken", "name"),
            grpc.StatusCode.ALREADY_EXISTS,
            "ALREADY_EXISTS",
            [],
        ),
        (
            PermanentError("NamespaceNotEnabled", "label the namespace first"),
            grpc.StatusCode.FAILED_PRECONDITION,
            "NAMESPACE_NOT_ENABLED",
            [],
        ),
        (
            PermanentError("InvalidSpec", "longer than 30m", "spec.lifecycle.idleTimeout"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_SPEC",
            ["idle_timeout"],
        ),
        (
            PermanentError("InvalidSpec", "not here", "spec.files[2].path"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_SPEC",
            ["files[2].path"],
        ),
    ],
)
async def test_the_backends_refusals(
    api: Api, error: PermanentError, code: grpc.StatusCode, reason: str, fields: list[str]
) -> None:
    api.backend.raises = error
    failed = await failure(api.call("Create", create()))
    assert (failed.code, failed.reason, list(failed.fields)) == (code, reason, fields)
    assert error.sentence in failed.message


async def test_a_hint_when_to_retry_is_handed_on(api: Api) -> None:
    api.backend.raises = TransientError("429 from 10.0.0.1", retry_after=3)
    failed = await failure(api.call("Create", create()))
    assert (failed.code, failed.retry_seconds) == (grpc.StatusCode.UNAVAILABLE, 3.0)
    assert "10.0.0.1" not in failed.message


async def test_an_unforeseen_error_tells_nothing(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    api.backend.raises = RuntimeError("password=hunter2")
    failed = await failure(api.call("Get", get()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "hunter2" not in failed.message + caplog.text
    assert "RuntimeError" in caplog.text


# The server itself.


async def test_too_many_calls_at_once_are_asked_to_come_back(api: Api) -> None:
    api.backend.hold = asyncio.Event()
    api.reviewer.valid["of-dave"] = "dave"
    api.reviewer.allowed.add("dave")
    callers = [ALICE, ALICE, CAROL, "of-dave"]
    running = [asyncio.ensure_future(api.call("Create", create(), each)) for each in callers]
    for _ in running:
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


async def test_clients_that_trust_another_ca_do_not_talk_to_it(api: Api) -> None:
    async with channel(api.port, Authority.create(datetime.now(UTC))) as foreign:
        stub = sessions_pb2_grpc.SessionsStub(foreign)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(get(), metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert not api.reviewer.token_reviews


async def test_no_other_service_and_no_plaintext(api: Api) -> None:
    async with channel(api.port, api.authority) as opened:
        unknown: Any = opened.unary_unary("/cloister.sessions.v1.Sessions/Destroy")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unknown(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.insecure_channel(f"127.0.0.1:{api.port}") as plain:
        stub = sessions_pb2_grpc.SessionsStub(plain)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(get(), metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_certificate_is_renewed_without_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = datetime.now(UTC) - timedelta(days=61)
    authority = Authority.create(now)
    backend, reviewer = FakeBackend(), FakeReviewer()
    backend.sessions["s1"] = made()
    issued: list[datetime] = []
    issue = authority.sessions_api_server

    def counted(when: datetime, *rest: Any) -> Any:
        issued.append(when)
        return issue(when, *rest)

    monkeypatch.setattr(authority, "sessions_api_server", counted)
    server = SessionsServer(
        backend, reviewer, authority, ip_addresses=["10.0.0.7"], clock=lambda: now
    )
    port = await server.start("127.0.0.1:0")

    async def call() -> None:
        async with channel(port, authority) as opened:
            stub = sessions_pb2_grpc.SessionsStub(opened)
            await stub.Get(get(), metadata=[("authorization", f"Bearer {ALICE}")], timeout=10)

    await call()
    await call()
    assert len(issued) == 1
    now += timedelta(days=61)
    await call()
    await call()
    assert len(issued) == 2
    await server.stop(0)


def test_grpc_is_told_of_a_certificate_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # What it is told of frees what other threads use: at every handshake that ends in a crash.
    now = datetime.now(UTC)
    renewed = _Renewed(Authority.create(now), [], lambda: now)
    assert renewed.fetch() is None
    now += timedelta(days=61)
    assert renewed.fetch() is not None
    assert renewed.fetch() is None


def test_every_method_has_its_rights() -> None:
    service = sessions_pb2.DESCRIPTOR.services_by_name["Sessions"]
    assert set(RIGHTS) == {each.name for each in service.methods}
