"""The Session that a call makes, and whether another call has made it."""

import hashlib
from datetime import timedelta

from .. import names
from ..api.backend import NewFile, NewSession
from ..api.common import JSON, EnvVar
from ..api.session import SessionObject
from ..errors import PermanentError


def digest(*parts: str | bytes) -> str:
    """Another one for other parts, be it that the same bytes are parted elsewhere."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        found.update(hashlib.sha256(data).digest())
    return found.hexdigest()


def _fingerprint(new: NewSession, request: str) -> str:
    """Tells a repetition of a call from another call.

    The caller is part of `request`, so that nobody gets at another's session by its request id.
    """
    parts: list[str | bytes] = [
        request,
        new.environment,
        new.name,
        repr(sorted(new.env.items())),
        repr((new.idle_timeout, new.max_lifetime)),
    ]
    for file in new.files:
        parts += [file.path, str(file.mode), file.content]
    return digest(*parts)


def same_call(made: JSON, body: JSON) -> bool:
    """Whether a Session is what this very call makes.

    Annotations are anybody's who may make Sessions: one that poses as a caller's own would run with
    somebody else's files and variables.
    """
    mine, theirs = SessionObject.parse(body), SessionObject.parse(made)
    keys = (names.ISSUED_BY, names.REQUEST, names.REQUEST_ID)
    noted, notes = mine.metadata.annotations, theirs.metadata.annotations
    return all(notes.get(each) == noted[each] for each in keys) and (
        (mine.spec.environment_name, _by_name(mine.spec.env), mine.spec.files)
        == (theirs.spec.environment_name, _by_name(theirs.spec.env), theirs.spec.files)
    )


def _by_name(variables: list[EnvVar]) -> list[EnvVar]:
    """In an order that is the same for all: a call's variables are a map, and each process that
    reads it has them in another one.
    """
    return sorted(variables, key=lambda each: each.name)


def body_of(new: NewSession, name: str, request: str) -> JSON:
    """The Session that a call makes; raises PermanentError for a file that is no text.

    `request`: the digest of the caller and the request id.
    """
    lifecycle = {
        key: _seconds(value)
        for key, value in (("idleTimeout", new.idle_timeout), ("maxLifetime", new.max_lifetime))
        if value is not None
    }
    spec: JSON = {
        "environmentName": new.environment,
        "env": [{"name": key, "value": value} for key, value in new.env.items()],
        "files": [_file(each, index) for index, each in enumerate(new.files)],
    }
    if lifecycle:
        spec["lifecycle"] = lifecycle
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.SESSION_KIND,
        "metadata": {
            "name": name,
            "namespace": new.namespace,
            "annotations": {
                names.ISSUED_BY: names.ISSUED_BY_API,
                names.REQUEST: _fingerprint(new, request),
                names.REQUEST_ID: request,
            },
        },
        "spec": spec,
    }


def _file(file: NewFile, index: int) -> JSON:
    try:
        content = file.content.decode()
    except UnicodeDecodeError:
        raise PermanentError(
            "InvalidArgument",
            "must be UTF-8 text; send other files with Files.Upload once the session runs",
            f"files[{index}].content",
        ) from None
    return {"path": file.path, "mode": f"{file.mode:04o}", "readOnly": False, "content": content}


def _seconds(value: timedelta) -> str:
    return f"{max(1, round(value.total_seconds()))}s"
