"""What exec servers answer, as the rest of the operator may see it."""

import unicodedata
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import grpc
from google.protobuf.duration_pb2 import Duration

from cloister_api.exec.v1 import exec_pb2

from ..api import conditions
from ..errors import OperatorError, PermanentError, TransientError

_TEXT = 1024
_IDENTIFIER = 128
_MAX_SOURCES = 256
_MAX_AWAITED = 64
_LONGEST = timedelta(days=3650)


class SandboxState(StrEnum):
    """What an exec server says of itself."""

    PREPARING = "preparing"
    WARM = "warm"
    CLAIMED = "claimed"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True)
class SandboxInfo:
    """An exec server's answer to Info, cleaned."""

    state: SandboxState
    version: str
    api_generation: int
    boot_id: str
    session_uid: str
    problem: str
    uid_map: str = ""
    """Lines of numbers; empty where the exec server does not tell."""
    awaits: tuple[str, ...] = ()
    """Directories whose files it waits for."""
    awaits_proof: bool = False
    """Whether its setup waits until its network was proven closed."""
    takes_trees: bool = True
    """Whether it knows how to wait for them."""


@dataclass(frozen=True)
class Activity:
    """What happens in a claimed pod, as the pod says: never negative, otherwise untrusted."""

    idle_for: timedelta
    active: timedelta
    running_calls: int


class SandboxFailed(PermanentError):
    """This pod will not serve any session.

    Reason `SetupFailed`: its files or its setup script failed, the sentence says how.
    Reason `SandboxMisbehaves`: it answers what no exec server answers.
    """


class Unreachable(TransientError):
    """No exec server of the expected name answers there."""


_PASSING = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
"""What a good exec server answers while a session's own calls, or its tools, take all there is."""
_TOO_LARGE = "larger than max"
"""How gRPC words, under the same code, that it takes no answer of that size."""
_STATES = {
    exec_pb2.RuntimeInfo.STATE_PREPARING: SandboxState.PREPARING,
    exec_pb2.RuntimeInfo.STATE_WARM: SandboxState.WARM,
    exec_pb2.RuntimeInfo.STATE_CLAIMED: SandboxState.CLAIMED,
    exec_pb2.RuntimeInfo.STATE_DRAINING: SandboxState.DRAINING,
    exec_pb2.RuntimeInfo.STATE_FAILED: SandboxState.FAILED,
}


def clean(text: str, limit: int = _TEXT) -> str:
    """Foreign text as one printable line of at most `limit` characters.

    Control, formatting and unassigned characters become spaces: they could forge lines in a log
    or turn a terminal's text around.
    """
    # The slice bounds the work before it is done.
    readable = "".join(
        " " if unicodedata.category(each)[0] in "CZ" else each for each in text[: 4 * limit]
    )
    line = " ".join(readable.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def info(pod_name: str, answer: exec_pb2.RuntimeInfo) -> SandboxInfo:
    """Read the answer to Info; raises SandboxFailed for a state that does not exist."""
    state = _STATES.get(answer.state)
    if state is None:
        raise misbehaves(pod_name, "it reports a state that does not exist")
    return SandboxInfo(
        state=state,
        version=clean(answer.version, _IDENTIFIER),
        api_generation=answer.api_generation,
        boot_id=clean(answer.boot_id, _IDENTIFIER),
        session_uid=clean(answer.session_uid, _IDENTIFIER),
        problem=clean(answer.problem),
        awaits=tuple(clean(each) for each in answer.awaits[:_MAX_AWAITED]),
        awaits_proof=answer.awaits_proof,
        takes_trees="recipe.trees" in answer.capabilities[:_MAX_SOURCES],
        uid_map="\n".join(clean(each) for each in answer.uid_map[:_TEXT].splitlines()),
    )


def package_sources(
    pod_name: str, answer: exec_pb2.PackageSourcesResponse
) -> list[tuple[str, list[str]]]:
    """Read the answer to PackageSources: URLs by manager, as the pod says them.

    Raises SandboxFailed for more than any image has.
    """
    if len(answer.sources) > _MAX_SOURCES:
        raise misbehaves(pod_name, "it names more sources of packages than there can be")
    found: dict[str, list[str]] = {}
    for each in answer.sources:
        found.setdefault(clean(each.manager, _IDENTIFIER), []).append(clean(each.url))
    return list(found.items())


def activity(pod_name: str, answer: exec_pb2.ActivityResponse) -> Activity:
    """Read the answer to Activity; raises SandboxFailed for times that cannot be."""
    return Activity(
        idle_for=_time(pod_name, answer.idle_for),
        active=_time(pod_name, answer.active),
        running_calls=answer.running_calls,
    )


def failure(pod_name: str, error: grpc.aio.AioRpcError) -> OperatorError:
    """A failed call as an error that says whether to try again."""
    said = clean(error.details() or "", 256)
    if error.code() in _PASSING and _TOO_LARGE not in said:
        return TransientError(f"pod {pod_name} has no room for a call: {said}")
    if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return Unreachable(f"pod {pod_name} cannot be called: {said}")
    return misbehaves(pod_name, f"it answers {error.code().name}: {said}")


def misbehaves(pod_name: str, what: str) -> SandboxFailed:
    """The error about a pod that answers what no exec server answers."""
    return SandboxFailed(conditions.SANDBOX_MISBEHAVES, f"pod {pod_name} does not behave: {what}")


def _time(pod_name: str, given: Duration) -> timedelta:
    try:
        return min(max(given.ToTimedelta(), timedelta(0)), _LONGEST)
    except (ValueError, OverflowError):
        raise misbehaves(pod_name, "it reports a time that cannot be") from None
