"""Failures as they travel: google.rpc's details, short, and as the client reads them."""

import errno
import os
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from cloister._status import Resource, Violation, decode
from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox import errors, failures
from cloister_sandbox.errors import Busy, CallError, IdConflict, InvalidField, NotFound, Stale
from support.file_calls import FileCalls
from support.sandbox_server import Sandbox, Tools

KINDS = {
    each: getattr(error_details_pb2, each)
    for each in (
        "ErrorInfo",
        "BadRequest",
        "ResourceInfo",
        "PreconditionFailure",
        "QuotaFailure",
        "RetryInfo",
    )
}
# What gRPC takes of metadata without refusing any.
MOST_HEADERS = 8192


def unpacked(raw: bytes) -> dict[str, Any]:
    """The details of an encoded status, by kind, as the public messages read them."""
    found = {}
    for each in status_pb2.Status.FromString(raw).details:
        name = each.type_url.rpartition(".")[2]
        found[name] = KINDS[name]()
        assert each.Unpack(found[name])
    return found


def test_what_is_missing_is_named() -> None:
    error = NotFound("UNKNOWN_ID", "no such command", command_id="c", shell_id="s")
    found = unpacked(error.status_details())
    assert set(found) == {"ErrorInfo", "ResourceInfo"}
    resource = found["ResourceInfo"]
    assert (resource.resource_type, resource.resource_name) == ("command", "c")
    assert decode(error.status_details()).resource == Resource("command", "c")


def test_a_precondition_is_named() -> None:
    error = Stale("ETAG_MISMATCH", "a.txt is not the file it was", path="a.txt", etag="1")
    found = unpacked(error.status_details())
    assert set(found) == {"ErrorInfo", "PreconditionFailure"}
    (violation,) = found["PreconditionFailure"].violations
    assert (violation.type, violation.subject) == ("ETAG_MISMATCH", "a.txt")
    assert decode(error.status_details()).violations == (
        Violation("ETAG_MISMATCH", "a.txt", "a.txt is not the file it was"),
    )


def test_what_takes_too_long_tells_of_no_connection() -> None:
    error = failures.failed("endless", TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)))
    assert (error.reason, error.message) == ("FILE_ERROR", "endless: it takes too long")


def test_a_bound_is_named_with_its_value() -> None:
    error = Busy("TOO_MANY_SHELLS", "64 shells are open", 1.5, "shells", 64)
    found = unpacked(error.status_details())
    assert set(found) == {"ErrorInfo", "QuotaFailure", "RetryInfo"}
    (violation,) = found["QuotaFailure"].violations
    assert (violation.quota_id, violation.quota_value) == ("shells", 64)
    details = decode(error.status_details())
    assert details.violations == (Violation("shells", "sandbox", "64 shells are open", 64),)
    assert details.retry_after == 1.5


def test_a_bound_of_the_machine_has_no_value() -> None:
    error = Busy("DISK_FULL", "no space is left", 5.0, "disk")
    assert decode(error.status_details()).violations[0].limit is None


LONG = "\udcff\u00e9\u4e16" * 5000


@pytest.mark.parametrize(
    "error",
    [
        InvalidField("a.field", LONG),
        NotFound("UNKNOWN_ID", LONG, command_id=LONG, shell_id=LONG),
        IdConflict("ID_CONFLICT", LONG, command_id=LONG, shell_id=LONG),
        Stale("ETAG_MISMATCH", LONG, path=LONG, etag="e" * 40),
        errors.WrongState("OLD_STRING_NOT_UNIQUE", LONG, path=LONG, field="f" * 30, count="2"),
        Busy("TOO_MANY_DIRECTORIES", LONG, 60.0, "watch-directories", 8192),
    ],
    ids=lambda error: type(error).__name__,
)
def test_headers_have_room_for_the_longest(error: CallError) -> None:
    """As gRPC sends them: the message percent-encoded, the details in base64."""
    message = 3 * len(error.message.encode())
    assert message + 4 * len(error.status_details()) / 3 < MOST_HEADERS
    assert decode(error.status_details()).reason == error.reason


@pytest.mark.parametrize("kind", ["ResourceInfo", "PreconditionFailure", "QuotaFailure"])
@pytest.mark.parametrize("content", [b"\xff", b"\x0a\x05a", b"\x0a\x02\xff\xff", b"\x0a\x01\x0a"])
def test_malformed_ones_are_no_details(kind: str, content: bytes) -> None:
    status = status_pb2.Status()
    info = error_details_pb2.ErrorInfo(reason="WHY")
    status.details.add().Pack(info)
    status.details.add(type_url=f"type.googleapis.com/google.rpc.{kind}", value=content)
    details = decode(status.SerializeToString())
    assert (details.reason, details.violations) in (("", ()), ("WHY", ()))


def failed(call: Any) -> dict[str, Any]:
    """The details of a call that fails."""
    with pytest.raises(grpc.RpcError) as failure:
        call()
    error: Any = failure.value
    return unpacked(dict(error.trailing_metadata())["grpc-status-details-bin"])


def test_a_server_sends_them(claimed: Sandbox, tools: Tools) -> None:
    with claimed.worker() as channel:
        files = FileCalls(channel)
        missing = failed(lambda: files.stat("none"))["ResourceInfo"]
        assert (missing.resource_type, missing.resource_name) == ("file", "none")
        (claimed.workspace / "here").write_text("secret words")
        edit = exec_pb2.EditRequest(path="here", if_etag="other")
        edit.edits.add(old_string="secret", new_string="x")
        (stale,) = failed(lambda: files.stub.Edit(edit))["PreconditionFailure"].violations
        assert (stale.type, stale.subject) == ("ETAG_MISMATCH", "here")
        tools.call("bash", "twice", command="echo once")
        taken = failed(lambda: tools.call("bash", "twice", command="echo other"))
        assert taken["ResourceInfo"].resource_type == "call"
        assert "echo" not in str(taken)
