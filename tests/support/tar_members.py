"""Parts of archives, also such as no server makes."""

import tarfile
from typing import Any

END = b"\0" * 1024
"""What ends an archive."""


def member(name: str, data: bytes = b"", **fields: Any) -> bytes:
    """One member as it is in an archive, with no end behind it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return (
        info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        + data
        + b"\0" * (-len(data) % 512)
    )
