"""Watches of the Kubernetes API over real HTTP: what they tell, and when they are repeated."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cloister_operator.cluster.api import ExpiredError, HttpApi
from cloister_operator.cluster.resources import PODS
from cloister_operator.errors import TransientError
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


def event(kind: str, obj: JSON) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


async def watched(api: HttpApi, version: str = "5") -> list[tuple[str, JSON]]:
    return [each async for each in api.watch(PODS, "ns", "a=b", version)]


async def test_a_watch_tells_of_objects_and_bookmarks(server: Server, api: HttpApi) -> None:
    bookmark = {"metadata": {"resourceVersion": "99"}}
    server.streams(event("ADDED", POD) + event("MODIFIED", POD), event("BOOKMARK", bookmark))
    assert await watched(api) == [("ADDED", POD), ("MODIFIED", POD), ("BOOKMARK", bookmark)]
    ((method, path, query, _, _),) = server.requests
    assert (method, path) == ("GET", "/api/v1/namespaces/ns/pods")
    assert query.pop("timeoutSeconds").isdigit()
    assert query == {
        "watch": "true",
        "resourceVersion": "5",
        "allowWatchBookmarks": "true",
        "labelSelector": "a=b",
    }


async def test_events_come_whole_however_they_are_cut(server: Server, api: HttpApi) -> None:
    line = event("ADDED", POD)
    server.streams(line[:10], line[10:] + line[:-1], b"\n")
    assert await watched(api) == [("ADDED", POD)] * 2


async def test_an_object_may_be_large(server: Server, api: HttpApi) -> None:
    large = POD | {"spec": {"text": "x" * 1_500_000}}
    server.streams(event("ADDED", large) + event("DELETED", POD))
    assert await watched(api) == [("ADDED", large), ("DELETED", POD)]


async def test_a_watch_that_is_too_old_says_so(server: Server, api: HttpApi) -> None:
    server.answers(410)
    with pytest.raises(ExpiredError):
        await watched(api)
    gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
    server.streams(event("ADDED", POD) + event("ERROR", gone))
    with pytest.raises(ExpiredError):
        await watched(api)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(event("ERROR", {"kind": "Status", "code": 500, "message": "no"}), id="error"),
        pytest.param(b"<html>\n", id="not JSON"),
        pytest.param(event("ADDED", POD)[:20], id="cut off"),
    ],
)
async def test_a_broken_watch_is_to_be_repeated(
    server: Server, api: HttpApi, broken: bytes
) -> None:
    server.streams(event("ADDED", POD), broken)
    with pytest.raises(TransientError):
        await watched(api)


async def test_a_watch_that_is_refused_or_cut_off_is_to_be_repeated(
    server: Server, api: HttpApi
) -> None:
    server.answers(403)
    with pytest.raises(TransientError):
        await watched(api)
    server.hangs_up()
    with pytest.raises(TransientError):
        await watched(api)
