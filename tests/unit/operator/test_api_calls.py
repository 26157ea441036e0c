"""What each call of the Sessions API does, with a backend of the tests' own."""

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from google.protobuf.duration_pb2 import Duration

from cloister_api.sessions.v1 import sessions_pb2
from cloister_operator.api.backend import EgressRecord, SessionChange
from cloister_operator.errors import PermanentError
from support.sessions_parts import (
    ALICE,
    NS,
    UID,
    Api,
    create,
    failure,
    get,
    made,
    not_ready,
)


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
