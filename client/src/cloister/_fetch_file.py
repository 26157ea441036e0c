"""Fetching one file into a directory of this machine, in as many runs as it takes."""

from ._errors import DataLossError
from ._files import Files, modified_ns
from ._places import Partial, Place
from ._progress import Meter
from ._threads import finished

_TRIES = 3
_KEPT = 1024 * 1024
"""A partial file of this size is left for the next run."""


async def fetch_file(
    files: Files, path: str, place: Place, parts: tuple[str, ...], meter: Meter
) -> None:
    """Copy one file; a partial one of an earlier run is gone on with.

    A file that changes meanwhile is read again. Raises DataLossError when it goes on changing.
    """
    for left in reversed(range(_TRIES)):
        try:
            await _fetch_once(files, path, place, parts, meter)
            return
        except DataLossError:
            if not left:
                raise


async def _fetch_once(
    files: Files, path: str, place: Place, parts: tuple[str, ...], meter: Meter
) -> None:
    name = "/".join(parts)
    entry = await files.entry(path)
    kept = entry.size >= _KEPT and await files.has("files.resume")
    etag = entry.etag if kept else ""
    partial: Partial = await finished(lambda: place.begin(parts, etag))
    keep = False

    def write(data: bytes) -> None:
        with place.errors("write", parts):
            partial.write(data)

    def put() -> None:
        with place.errors("write", parts):
            partial.place(entry.mode, modified_ns(entry))

    try:
        await files.read(
            path,
            write,
            offset=partial.size,
            etag=entry.etag,
            came=lambda offset: meter.at(name, offset),
        )
        await finished(put)
        keep = True
    except DataLossError:
        raise
    except BaseException:
        keep = bool(etag) and partial.size >= _KEPT
        raise
    finally:
        if not keep:
            partial.discard()
        partial.close()
    meter.done(name, entry.size)
