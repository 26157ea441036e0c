"""Between the API's messages and the operator's objects, with every limit on what comes in.

The limits are those of the Session's schema in the chart, so that whatever passes here passes
there too; here all that is wrong is named at once, in the request's words.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from google.protobuf.duration_pb2 import Duration

from cloister_api.sessions.v1 import sessions_pb2

from ..api import conditions
from ..api.backend import EgressRecord, NewFile, NewSession, SessionChange
from ..api.session import Phase, SessionObject
from ..identity import Identity
from .status import InvalidFields

MAX_FILES: Final = 64
MAX_FILE: Final = 256 * 1024
MAX_FILES_TOTAL: Final = 768 * 1024
MAX_PATH: Final = 512
MAX_VARIABLES: Final = 100
MAX_VARIABLE_NAME: Final = 128
MAX_VARIABLE: Final = 32 * 1024
MAX_REQUEST_ID: Final = 64
MAX_NAME: Final = 63
MAX_ENVIRONMENT: Final = 40
DEFAULT_WAIT: Final = timedelta(seconds=60)
MAX_WAIT: Final = timedelta(minutes=10)
LONGEST: Final = timedelta(days=365)
_MAX_VIOLATIONS = 16

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = re.compile(
    r"(CLOISTER_|KUBERNETES_).*"
    r"|LD_PRELOAD|LD_AUDIT|BASH_ENV|ENV|BASHOPTS|SHELLOPTS|PROMPT_COMMAND|IFS"
)
_PATH = re.compile(r"(/[^/:\x00-\x1f\x7f]+)+")
_ROOTS = ("/workspace/", "/mnt/session/uploads/")
_PHASES = {
    Phase.PENDING: sessions_pb2.Session.PHASE_PENDING,
    Phase.RUNNING: sessions_pb2.Session.PHASE_RUNNING,
    Phase.SUSPENDED: sessions_pb2.Session.PHASE_SUSPENDED,
    Phase.FAILED: sessions_pb2.Session.PHASE_FAILED,
    Phase.TERMINATED: sessions_pb2.Session.PHASE_TERMINATED,
}
_Violations = Iterator[tuple[str, str]]


def check_target(namespace: str, name: str, *, name_required: bool) -> None:
    """Raise InvalidFields unless these can be a namespace and a session's name."""
    found = [*_named("namespace", namespace, MAX_NAME)]
    if name or name_required:
        found += _named("name", name, MAX_NAME)
    _refuse(found)


def check_environment_filter(environment: str) -> None:
    """Raise InvalidFields unless it is empty or can be an Environment's name."""
    if environment:
        _refuse([*_named("environment", environment, MAX_ENVIRONMENT)])


def new_session(request: sessions_pb2.CreateSessionRequest, caller: str) -> NewSession:
    """What is asked for, and by whom; raises InvalidFields that names every field at fault."""
    found = [
        *_named("environment", request.environment, MAX_ENVIRONMENT),
        *_request_id(request.request_id),
        *_variables(request.env),
        *_files(request.files),
    ]
    limits: dict[str, timedelta | None] = {}
    for field in ("idle_timeout", "max_lifetime"):
        given = getattr(request, field)
        limits[field] = _duration(given) if request.HasField(field) else None
        if request.HasField(field):
            found += _limited(field, given)
    idle, life = limits["idle_timeout"], limits["max_lifetime"]
    if idle and life and idle > life:
        found.append(("idle_timeout", "must not be longer than max_lifetime"))
    _refuse(found)
    return NewSession(
        namespace=request.namespace,
        environment=request.environment,
        name=request.name,
        request_id=request.request_id,
        caller=caller,
        env=dict(request.env),
        files=tuple(
            NewFile(path=each.path, mode=each.mode or 0o644, content=each.content)
            for each in request.files
        ),
        idle_timeout=idle,
        max_lifetime=life,
    )


def wait_of(
    request: sessions_pb2.CreateSessionRequest | sessions_pb2.ResumeRequest,
) -> timedelta:
    """How long the caller wants to wait for a pod; raises InvalidFields."""
    if not request.HasField("wait"):
        return DEFAULT_WAIT
    wait = _duration(request.wait)
    if wait is None or not timedelta(0) <= wait <= MAX_WAIT:
        _refuse([("wait", f"must be from 0 to {_seconds(MAX_WAIT)} s")])
    return wait or timedelta(0)


def session(found: SessionObject, expires_at: datetime | None) -> sessions_pb2.Session:
    """A Session as the API shows it."""
    status = found.status
    reason, message = explanation(found)
    answer = sessions_pb2.Session(
        namespace=found.metadata.namespace,
        name=found.metadata.name,
        uid=found.metadata.uid,
        environment=found.spec.environment_name,
        phase=_PHASES[status.phase],
        reason=reason,
        message=message,
        pod_name=status.pod_name or "",
        endpoint=status.endpoint or "",
        server_name=status.server_name or "",
        recipe_hash=status.recipe_hash or "",
        restarts=max(0, status.restarts),
        queue_position=status.queue_position or 0,
    )
    if found.metadata.creation_timestamp:
        created = conditions.parse_time(found.metadata.creation_timestamp)
        answer.created_at.FromDatetime(created)
    if expires_at is not None:
        answer.expires_at.FromDatetime(expires_at)
    return answer


def explanation(found: SessionObject) -> tuple[str, str]:
    """Reason and sentence of a Session's present phase; empty where it has none yet."""
    for each in found.status.conditions:
        if each.type == conditions.READY:
            return found.status.reason or each.reason, each.message
    return found.status.reason or "", ""


def credentials(identity: Identity) -> sessions_pb2.Credentials:
    """A client certificate as the API hands it out."""
    answer = sessions_pb2.Credentials(
        certificate_pem=identity.certificate_pem,
        private_key_pem=identity.private_key_pem,
        ca_pem=identity.ca_pem,
    )
    answer.expires_at.FromDatetime(identity.not_after)
    return answer


def egress(records: Iterable[EgressRecord]) -> sessions_pb2.GetEgressResponse:
    """What a session tried to reach."""
    answer = sessions_pb2.GetEgressResponse()
    for each in records:
        made = answer.decisions.add(
            host=each.host,
            port=each.port,
            allowed=each.allowed,
            reason=each.reason,
            count=each.count,
            bytes_sent=each.bytes_sent,
            bytes_received=each.bytes_received,
        )
        made.first.FromDatetime(each.first)
        made.last.FromDatetime(each.last)
    return answer


def event(change: SessionChange, expires_at: datetime | None) -> sessions_pb2.SessionEvent:
    """A change as a watcher gets it."""
    if change.session is not None:
        return sessions_pb2.SessionEvent(session=session(change.session, expires_at))
    if change.deleted is not None:
        namespace, name = change.deleted
        return sessions_pb2.SessionEvent(
            deleted=sessions_pb2.DeletedSession(namespace=namespace, name=name)
        )
    return sessions_pb2.SessionEvent(synced=sessions_pb2.Synced())


def _refuse(found: Sequence[tuple[str, str]]) -> None:
    if found:
        raise InvalidFields(found[:_MAX_VIOLATIONS])


def _named(field: str, value: str, longest: int) -> _Violations:
    if not value:
        yield field, "must not be empty"
    elif len(value) > longest:
        yield field, f"must have at most {longest} characters, has {len(value)}"
    elif not _NAME.fullmatch(value):
        yield field, "must be lower-case letters, digits and '-', and begin and end without '-'"


def _request_id(value: str) -> _Violations:
    if value and (len(value) > MAX_REQUEST_ID or not _REQUEST_ID.fullmatch(value)):
        yield "request_id", f"must be 1 to {MAX_REQUEST_ID} of letters, digits, '.', '_' and '-'"


def _variables(env: Mapping[str, str]) -> _Violations:
    if len(env) > MAX_VARIABLES:
        yield "env", f"at most {MAX_VARIABLES} variables, has {len(env)}"
        return
    for name, value in env.items():
        shown = name[:MAX_VARIABLE_NAME]
        if not _VARIABLE.fullmatch(name) or len(name) > MAX_VARIABLE_NAME:
            yield (
                "env",
                f"{shown!r} is no name: letters, digits and '_', at most {MAX_VARIABLE_NAME}",
            )
        elif _RESERVED.fullmatch(name):
            yield f"env[{name}]", "has a meaning of its own to Cloister or to the shell"
        elif "\0" in value:
            yield f"env[{name}]", "must not contain a NUL character"
        elif len(value) > MAX_VARIABLE:
            yield f"env[{name}]", f"must have at most {MAX_VARIABLE} characters"


def _files(files: Sequence[sessions_pb2.File]) -> _Violations:
    if len(files) > MAX_FILES:
        yield "files", f"at most {MAX_FILES} files, has {len(files)}"
        return
    total = sum(len(each.content) for each in files)
    if total > MAX_FILES_TOTAL:
        sentence = f"at most {MAX_FILES_TOTAL} bytes in all, has {total}; send large ones later"
        yield "files", sentence
    seen: set[str] = set()
    for index, each in enumerate(files):
        field = f"files[{index}]"
        yield from _path(f"{field}.path", each.path)
        if each.path in seen:
            yield f"{field}.path", "is named twice"
        seen.add(each.path)
        if each.mode > 0o777:
            yield f"{field}.mode", "must be permission bits, at most 0777"
        yield from _content(f"{field}.content", each.content)
    for index, each in enumerate(files):
        parts = each.path.split("/")
        if any("/".join(parts[:length]) in seen for length in range(2, len(parts))):
            yield f"files[{index}].path", "lies below a path that is a file in this request"


def _path(field: str, path: str) -> _Violations:
    if len(path) > MAX_PATH:
        yield field, f"must have at most {MAX_PATH} characters"
    elif not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        yield field, "must be absolute, without empty, '.' or '..' parts, ':' or control characters"
    elif not path.startswith(_ROOTS):
        yield field, "must be below /workspace or /mnt/session/uploads"


def _content(field: str, content: bytes) -> _Violations:
    if len(content) > MAX_FILE:
        yield field, f"must have at most {MAX_FILE} bytes, has {len(content)}"
        return
    try:
        content.decode()
    except UnicodeDecodeError:
        # The Session object keeps the content, and its schema knows text only.
        yield field, "must be UTF-8 text; send other files to the sandbox once it runs"


def _limited(field: str, given: Duration) -> _Violations:
    value = _duration(given)
    if value is None or not timedelta(seconds=1) <= value <= LONGEST:
        yield field, f"must be from 1 to {_seconds(LONGEST)} s"


def _duration(given: Duration) -> timedelta | None:
    try:
        return given.ToTimedelta()
    except (ValueError, OverflowError):
        return None


def _seconds(value: timedelta) -> int:
    return int(value.total_seconds())
