"""The Kubernetes API over real HTTP: what is sent, and what each answer means."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
import pytest
from aiohttp import web

from cloister_operator.cluster.api import HttpApi
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    PODS,
    SESSIONS,
)
from cloister_operator.errors import (
    ConflictError,
    LostError,
    NotFoundError,
    OperatorError,
    PermanentError,
    QuotaError,
    RefusedError,
    TransientError,
)
from support.http_api import POD, Server, connected, serving

JSON = dict[str, Any]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as made:
        yield made


@pytest.fixture
async def api(server: Server) -> AsyncIterator[HttpApi]:
    async with connected(server) as made:
        yield made


async def read(api: HttpApi) -> Any:
    return await api.get(PODS, "ns", "p")


async def write(api: HttpApi) -> Any:
    return await api.create(PODS, "ns", {"metadata": {"name": "p"}})


async def patch(api: HttpApi) -> Any:
    return await api.json_patch(PODS, "ns", "p", [{"op": "test", "path": "/a", "value": 1}])


# --- what is sent --------------------------------------------------------------------------------


async def test_requests_are_those_of_the_kubernetes_api(server: Server, api: HttpApi) -> None:
    await api.get(NAMESPACES, "", "ns")
    await api.create(PODS, "ns", {"metadata": {"name": "p"}})
    policy = {"metadata": {"name": "deny"}, "spec": {}}
    await api.apply(NETWORK_POLICIES, "ns", policy)
    operations = [{"op": "test", "path": "/metadata/uid", "value": "u"}]
    await api.json_patch(PODS, "ns", "p", operations)
    await api.patch_status(SESSIONS, "ns", "s", {"phase": "Running", "reason": None}, "12")
    await api.patch_status(ENVIRONMENTS, "ns", "e", {"conditions": []})
    await api.delete(PODS, "ns", "p", uid="u", version="7")
    await api.delete(PODS, "ns", "p")
    plain, options = "application/json", {"kind": "DeleteOptions", "apiVersion": "v1"}
    pods, ours = "/api/v1/namespaces/ns/pods", "/apis/cloister.dev/v1alpha1/namespaces/ns"
    assert server.requests == [
        ("GET", "/api/v1/namespaces/ns", {}, plain, None),
        ("POST", pods, {}, plain, {"metadata": {"name": "p"}}),
        (
            "PATCH",
            "/apis/networking.k8s.io/v1/namespaces/ns/networkpolicies/deny",
            {"fieldManager": "cloister-operator", "force": "true"},
            "application/apply-patch+yaml",
            policy,
        ),
        ("PATCH", f"{pods}/p", {}, "application/json-patch+json", operations),
        (
            "PATCH",
            f"{ours}/sessions/s/status",
            {},
            "application/merge-patch+json",
            {
                "status": {"phase": "Running", "reason": None},
                "metadata": {"resourceVersion": "12"},
            },
        ),
        (
            "PATCH",
            f"{ours}/environments/e/status",
            {},
            "application/merge-patch+json",
            {"status": {"conditions": []}},
        ),
        (
            "DELETE",
            f"{pods}/p",
            {},
            plain,
            options | {"preconditions": {"uid": "u", "resourceVersion": "7"}},
        ),
        ("DELETE", f"{pods}/p", {}, plain, options),
    ]


async def test_the_time_is_the_api_servers(server: Server, api: HttpApi) -> None:
    """Not that of what answers in its place when it does not."""
    wrong = "Fri, 01 May 2026 12:00:00 GMT"
    server.answers(503, Date=wrong)
    with pytest.raises(TransientError):
        await read(api)
    assert api.clock() - api.clock.own() < timedelta(seconds=1)
    server.answers(200, Date=wrong)
    await read(api)
    ahead = datetime(2026, 5, 1, 12, tzinfo=UTC) - api.clock()
    assert abs(ahead) < timedelta(seconds=30)


async def test_lists_are_of_a_namespace_or_of_all(server: Server, api: HttpApi) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"metadata": {"resourceVersion": "42"}, "items": [POD]})

    server.answer = answer
    assert await api.list(PODS, "ns", "a=b") == ([POD], "42")
    assert await api.list(SESSIONS) == ([POD], "42")
    assert [(path, query) for _, path, query, _, _ in server.requests] == [
        ("/api/v1/namespaces/ns/pods", {"labelSelector": "a=b", "limit": "500"}),
        ("/apis/cloister.dev/v1alpha1/sessions", {"limit": "500"}),
    ]


async def test_long_lists_come_in_pages_without_what_nobody_reads(
    server: Server, api: HttpApi
) -> None:
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "w", "persistentVolumeClaim": {}}]
    kept = {"nodeName": "n", "hostUsers": False}
    spec = {**kept, "containers": [{"name": "c"}], "volumes": volumes}
    ready, broken = {"type": "Ready"}, {"type": "PodScheduled", "reason": "Unschedulable"}
    ended = {"terminated": {"exitCode": 1}}
    status = {
        "phase": "Running",
        "podIP": "10.0.0.9",
        "hostIP": "10.0.0.1",
        "conditions": [ready, {"type": "Initialized"}, broken],
        "containerStatuses": [{"name": "sandbox", "imageID": "x", "state": ended}],
    }
    left = {
        "phase": "Running",
        "podIP": "10.0.0.9",
        "conditions": [ready, broken],
        "containerStatuses": [{"name": "sandbox", "state": ended}],
    }

    async def answer(request: web.Request) -> web.StreamResponse:
        last = request.query.get("continue") == "more"
        metadata = {"resourceVersion": "42"} | ({} if last else {"continue": "more"})
        name = "second" if last else "first"
        item = {"metadata": {"name": name, "managedFields": [{}]}, "spec": spec, "status": status}
        return web.json_response({"metadata": metadata, "items": [item]})

    server.answer = answer
    found, version = await api.list(PODS, "ns")
    assert version == "42"
    assert found == [
        {"metadata": {"name": name}, "spec": {**kept, "volumes": volumes[1:]}, "status": left}
        for name in ("first", "second")
    ]


async def test_a_list_whose_rest_is_gone_is_tried_again(server: Server, api: HttpApi) -> None:
    server.answers(410)
    with pytest.raises(TransientError):
        await api.list(PODS, "ns")


# --- what answers mean ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", [read, write, patch])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, PermanentError),
        (401, TransientError),
        (403, RefusedError),
        (404, NotFoundError),
        (409, ConflictError),
        (413, PermanentError),
        (429, TransientError),
    ],
)
async def test_errors_by_status(
    server: Server,
    api: HttpApi,
    call: Callable[[HttpApi], Awaitable[Any]],
    status: int,
    error: type[OperatorError],
) -> None:
    server.answers(status, "because of this")
    with pytest.raises(OperatorError, match="because of this") as caught:
        await call(api)
    assert type(caught.value) is error
    assert len(server.requests) == 1, "writes are never repeated by the client itself"


async def test_a_failed_test_of_a_patch_is_a_conflict_and_a_broken_object_is_not(
    server: Server, api: HttpApi
) -> None:
    server.answers(422, "spec.containers: required")
    with pytest.raises(ConflictError):
        await patch(api)
    with pytest.raises(PermanentError) as caught:
        await write(api)
    assert (caught.value.reason, caught.value.sentence) == ("Rejected", "spec.containers: required")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [({"Retry-After": "7"}, 7.0), ({}, None), ({"Retry-After": "Fri, 01 May 2026"}, None)],
)
async def test_the_time_to_wait_is_passed_on(
    server: Server, api: HttpApi, header: dict[str, str], seconds: float | None
) -> None:
    server.answers(429, **header)
    with pytest.raises(TransientError) as caught:
        await write(api)
    assert caught.value.retry_after == seconds


async def test_an_answer_that_is_no_status_is_an_error_all_the_same(
    server: Server, api: HttpApi
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<html>Bad Gateway")

    server.answer = answer
    with pytest.raises(TransientError, match="Bad Gateway"):
        await read(api)


async def test_a_write_without_an_answer_may_have_happened(server: Server, api: HttpApi) -> None:
    server.hangs_up()
    for call in (write, patch):
        with pytest.raises(LostError):
            await call(api)
    with pytest.raises(TransientError) as caught:
        await read(api)
    assert not isinstance(caught.value, LostError)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_an_answer_that_does_not_say_what_became_of_a_write(
    server: Server, api: HttpApi, status: int
) -> None:
    """The API server, or what is before it, gave up waiting: etcd may have the object."""
    server.answers(status, "etcdserver: request timed out", **{"Retry-After": "3"})
    for call in (write, patch, read):
        with pytest.raises(TransientError, match="request timed out") as caught:
            await call(api)
        assert isinstance(caught.value, LostError) is (call is not read)
        assert caught.value.retry_after == 3.0


async def test_an_answer_that_cannot_be_read_is_none(server: Server, api: HttpApi) -> None:
    """What is between it and us may answer in its place: mirrors and keys go on all the same."""
    server.streams(b"<html>sign in</html>")
    with pytest.raises(LostError):
        await write(api)
    with pytest.raises(TransientError):
        await api.list(PODS, "ns")


async def test_a_server_that_is_not_there_got_no_write(api: HttpApi, server: Server) -> None:
    nowhere = await HttpApi.connect(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1"))
    with pytest.raises(TransientError) as caught:
        await write(nowhere)
    assert not isinstance(caught.value, LostError)
    await nowhere.close()


async def test_a_quota_that_is_used_up_is_told_from_other_refusals(
    server: Server, api: HttpApi
) -> None:
    quota = "exceeded quota: team-a, requested: pods=1, used: pods=9, limited: pods=9"
    server.answers(403, f'pods "x" is forbidden: {quota}')
    with pytest.raises(QuotaError) as caught:
        await write(api)
    assert caught.value.quota == "team-a"
    assert str(caught.value) == f"{quota} (a ResourceQuota of the namespace)"
