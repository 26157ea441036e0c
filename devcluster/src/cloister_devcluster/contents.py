"""What is in an image that was built, by its own files: Debian packages, Python distributions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path

_DPKG = ("var/lib/dpkg/status", "var/lib/dpkg/status.d")
_NAME = re.compile(r"[-_.]+")


@dataclass(frozen=True, order=True)
class Package:
    """Something that somebody else may publish a vulnerability of."""

    kind: str
    """deb or pypi."""
    name: str
    version: str
    architecture: str = ""
    """Of a Debian package."""
    license: str = ""
    """As a Python distribution states it."""


def read(root: Path) -> list[Package]:
    """Everything below an image's root, sorted."""
    return sorted({*_debian(root), *_python(root)})


def _debian(root: Path) -> Iterator[Package]:
    for each in _DPKG:
        path = root / each
        files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        for file in files:
            for stanza in file.read_bytes().split(b"\n\n"):
                fields = message_from_bytes(stanza.strip() + b"\n\n")
                status = fields.get("Status", "install ok installed")
                if fields["Package"] and status.endswith(" installed"):
                    yield Package(
                        "deb", fields["Package"], fields["Version"], fields["Architecture"]
                    )


def _python(root: Path) -> Iterator[Package]:
    for path in root.rglob("*.dist-info/METADATA"):
        fields = message_from_bytes(path.read_bytes())
        name = _NAME.sub("-", fields["Name"]).lower()
        yield Package("pypi", name, fields["Version"], license=_license(fields))


def _license(fields: Message) -> str:
    return str(fields.get("License-Expression", ""))
