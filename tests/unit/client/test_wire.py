"""What only a newer server, or a lying one, says is a value like others, and raises nothing."""

from datetime import UTC, datetime

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

import cloister
from cloister._models import ToolResult
from cloister._outcomes import Exit, Output, ProcessInfo, start_failed
from cloister._wire import moment
from cloister_api.exec.v1 import exec_pb2

FAR = 2**62


def test_an_ending_of_a_kind_that_is_not_known_is_no_success() -> None:
    far = Duration(seconds=FAR)
    message = exec_pb2.ExitInfo(code=0, reason=99, wall=far, cpu=far)  # type: ignore[arg-type]
    ended = Exit.from_proto(message)
    assert (ended.reason, ended.seconds, ended.ok) == ("unknown", FAR, False)
    assert ToolResult.from_proto(exec_pb2.CallResult(exit=message)).seconds == FAR


def test_other_kinds_that_are_not_known() -> None:
    output = Output.from_proto(exec_pb2.Output(stream=99, data=b"x"))  # type: ignore[arg-type]
    assert (output.stream, output.data) == ("unknown", b"x")
    failed = start_failed(exec_pb2.ExecFailure(kind=99))  # type: ignore[arg-type]
    assert isinstance(failed, cloister.StartFailedError)
    assert failed.kind == "unknown"
    listed = ProcessInfo.from_proto(exec_pb2.Process(started_at=Timestamp(seconds=-FAR)))
    assert listed.started_at.year == 1


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (1_600_000_000, 123_456_789, datetime(2020, 9, 13, 12, 26, 40, 123_456, UTC)),
        (0, -1, datetime(1970, 1, 1, tzinfo=UTC)),
        (253_402_300_799, 2**31 - 1, datetime(9999, 12, 31, 23, 59, 59, 999_999, UTC)),
        (-FAR, 0, datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
def test_a_time(seconds: int, nanos: int, expected: datetime) -> None:
    assert moment(Timestamp(seconds=seconds, nanos=nanos)) == expected
