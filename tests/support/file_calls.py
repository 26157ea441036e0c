"""Calls of the Files service as a worker makes them."""

import json
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc

Frame = exec_pb2.UploadFrame
CHUNK = 65_536


class FileCalls:
    """One channel's Files service; every call has a deadline."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = exec_pb2_grpc.FilesStub(channel)

    def download(self, path: str, **fields: Any) -> tuple[bytes, exec_pb2.Entry]:
        """The bytes, whose offsets and checksum are verified, and the file as it was opened."""
        request = exec_pb2.DownloadRequest(path=path, **fields)
        chunks = list(self.stub.Download(request, timeout=60))
        data = b"".join(each.data for each in chunks)
        at = request.offset
        for each in chunks:
            assert each.offset == at
            at += len(each.data)
        assert [each.HasField("crc32") for each in chunks] == [False] * (len(chunks) - 1) + [True]
        assert [each.HasField("entry") for each in chunks] == [True] + [False] * (len(chunks) - 1)
        assert chunks[-1].crc32 == zlib.crc32(data)
        return data, chunks[0].entry

    def upload(self, path: str, data: bytes, **fields: Any) -> exec_pb2.Entry:
        """Upload bytes with their size and checksum."""
        return self.stub.Upload(frames(path, data, **fields), timeout=60)

    def offset(self, upload_id: str) -> int:
        """How much of an upload has arrived."""
        request = exec_pb2.UploadStateRequest(upload_id=upload_id)
        return self.stub.UploadState(request, timeout=10).offset

    def stat(self, path: str) -> exec_pb2.Entry:
        """Describe a path."""
        return self.stub.Stat(exec_pb2.StatRequest(path=path), timeout=10)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a path."""
        self.stub.Remove(exec_pb2.RemoveRequest(path=path, recursive=recursive), timeout=60)

    def move(self, source: str, target: str, *, overwrite: bool = False) -> exec_pb2.Entry:
        """Rename a path."""
        request = exec_pb2.MoveRequest(source=source, destination=target, overwrite=overwrite)
        return self.stub.Move(request, timeout=10)

    def grep(self, pattern: str, **fields: Any) -> tuple[list[str], exec_pb2.GrepSummary]:
        """Lines as `path:number:text`, with `-` around the number of a neighbour."""
        request = exec_pb2.GrepRequest(pattern=pattern, **fields)
        *lines, last = list(self.stub.Grep(request, timeout=60))
        assert last.HasField("summary")
        out = []
        for each in lines:
            sign = "-" if each.line.is_context else ":"
            out.append(f"{each.line.path}{sign}{each.line.number}{sign}{each.line.text}")
        return out, last.summary


def eventually(what: Callable[[], object], seconds: float = 20) -> None:
    """Wait until `what()` is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def found_by_ripgrep(path: Path, line: str) -> str:
    """What `rg --json` prints of a file with one line, which matches."""
    name = {"path": {"text": str(path)}}
    match = {"lines": {"text": line}, "line_number": 1, "absolute_offset": 0, "submatches": []}
    events = [
        {"type": "begin", "data": name},
        {"type": "match", "data": {**name, **match}},
        {"type": "end", "data": {**name, "binary_offset": None}},
        {"type": "summary", "data": {"stats": {"matches": 1}}},
    ]
    return "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in events)


def frames(
    path: str, data: bytes, *, checksum: int | None = None, skip: int = 0, **fields: Any
) -> Iterator[exec_pb2.UploadFrame]:
    """The frames of an upload that begins at byte `skip` of the data."""
    start = exec_pb2.UploadStart(path=path, offset=skip, **fields)
    yield Frame(start=start)
    for at in range(skip, len(data), CHUNK):
        yield Frame(data=data[at : at + CHUNK])
    crc = zlib.crc32(data) if checksum is None else checksum
    yield Frame(end=exec_pb2.UploadEnd(size=len(data), crc32=crc))
