"""What the Sessions API says to wrong input, and to what its backend refuses."""

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from cloister_api.sessions.v1 import sessions_pb2
from cloister_operator.errors import PermanentError, TransientError
from support.sessions_parts import (
    EVERY_CALL,
    NS,
    Api,
    create,
    failure,
    get,
)

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
