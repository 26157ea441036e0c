"""Files.Edit: several replacements in one file, all of them or none, written in one step."""

import os

from cloister_api.exec.v1 import exec_pb2

from .entries import etag, shown
from .errors import InvalidField, WrongState
from .failures import cannot_open, failed, require_etag, writable
from .paths import Roots
from .texts import (
    MAX_EDITED,
    NotFoundInText,
    NotUnique,
    ResultTooLarge,
    has_crlf_of,
    replace,
    unified_diff,
)
from .uploads import Uploads

MAX_BYTES = 8 * 1024 * 1024
MAX_EDITS = 1000
MAX_STRINGS = MAX_BYTES
"""Characters of all strings of a call, of which there are several copies until it ends."""


def edit(roots: Roots, uploads: Uploads, request: exec_pb2.EditRequest) -> exec_pb2.EditResult:
    """Apply the edits; raises CallError, and then the file is as it was."""
    path = request.path
    target = writable(roots, path)
    fd = roots.open_regular(target, os.O_RDONLY, lambda why: cannot_open(path, why))
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        require_etag(request.if_etag, path, info)
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise WrongState(
            "TOO_LARGE", f"{shown(path)} has more than {MAX_BYTES} bytes", path=shown(path)
        )
    try:
        before = data.decode("utf-8")
    except UnicodeDecodeError:
        raise WrongState("NOT_TEXT", f"{shown(path)} is not UTF-8 text", path=shown(path)) from None
    after, counts = _apply(request, before)
    # The file must still be the one that was read when the result takes its place.
    start = exec_pb2.UploadStart(path=path, if_etag=etag(info))
    try:
        upload = uploads.create(start, target)
        try:
            upload.append([after.encode("utf-8")])
            written = uploads.place(upload)
        finally:
            upload.discard()
    except OSError as error:
        raise failed(path, error) from None
    diff = unified_diff(shown(path), before, after)
    return exec_pb2.EditResult(counts=counts, entry=written, unified_diff=diff)


def _apply(request: exec_pb2.EditRequest, text: str) -> tuple[str, list[int]]:
    counts = []
    path = shown(request.path)
    for index, each in enumerate(request.edits):
        field = f"edits[{index}].old_string"
        if not each.old_string and text:
            raise InvalidField(field, "must not be empty: only an empty file can be filled so")
        try:
            text, count = replace(
                text, each.old_string, each.new_string, everywhere=each.replace_all
            )
        except NotFoundInText:
            hint = "; the file's lines end in CRLF" if has_crlf_of(text, each.old_string) else ""
            raise WrongState(
                "OLD_STRING_NOT_FOUND", f"{field} does not occur{hint}", path=path, field=field
            ) from None
        except NotUnique as found:
            raise WrongState(
                "OLD_STRING_NOT_UNIQUE",
                f"{field} occurs {found.count} times",
                path=path,
                field=field,
                count=str(found.count),
            ) from None
        except ResultTooLarge:
            raise WrongState(
                "TOO_LARGE", f"the result would have more than {MAX_EDITED} characters", path=path
            ) from None
        counts.append(count)
    return text, counts
