"""What the fake internet serves to those who may ask: a package index, a registry, a repository."""

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from pathlib import Path

from support.fake_internet_names import GIT, INDEX, PACKAGES

NAME = "tiny"
VERSION = "1.0"
WORDS = "it came through the gateway"
WORDS_FILE = f"/usr/share/{NAME}/words"
"""Where the Debian package has them."""
OWNER = "www-data"
"""Whose that file is."""
DEBIAN = "debian"
"""The folder of PACKAGES with a repository of Debian's kind."""


def publish(sites: Path) -> None:
    """Make the three sites, below the folder of the fake internet's sites."""
    _index(sites / INDEX)
    _registry(sites / PACKAGES)
    _debian(sites / PACKAGES / DEBIAN)
    _repository(sites / GIT)


def _index(root: Path) -> None:
    folder = root / "simple" / NAME
    folder.mkdir(parents=True)
    info = f"{NAME}-{VERSION}.dist-info"
    files = {
        f"{NAME}.py": f"WORDS = {WORDS!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    lines = [f"{name},{_sum(text.encode())},{len(text)}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    wheel = f"{NAME}-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{wheel}">{wheel}</a>')


def _registry(root: Path) -> None:
    root.mkdir()
    made = io.BytesIO()
    manifest = {"name": NAME, "version": f"{VERSION}.0", "main": "index.js"}
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, text in {
            "package/package.json": json.dumps(manifest),
            "package/index.js": f"module.exports = {json.dumps(WORDS)};\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (root / f"{NAME}.tgz").write_bytes(made.getvalue())
    digest = base64.b64encode(hashlib.sha512(made.getvalue()).digest()).decode()
    dist = {"tarball": f"https://{PACKAGES}/{NAME}.tgz", "integrity": f"sha512-{digest}"}
    versions = {manifest["version"]: {**manifest, "dist": dist}}
    told = {"name": NAME, "dist-tags": {"latest": manifest["version"]}, "versions": versions}
    (root / NAME).write_text(json.dumps(told))


def deb() -> bytes:
    """A package of Debian's, with one file."""
    files = {
        "debian-binary": b"2.0\n",
        "control.tar.gz": _packed({"./control": _control().encode()}),
        "data.tar.gz": _packed({f".{WORDS_FILE}": f"{WORDS}\n".encode()}, OWNER),
    }
    made = b"!<arch>\n"
    for name, content in files.items():
        made += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        made += content + b"\n" * (len(content) % 2)
    return made


def _control() -> str:
    return (
        f"Package: {NAME}\nVersion: {VERSION}\nArchitecture: all\n"
        f"Maintainer: test <test@example.com>\nDescription: {WORDS}\n"
    )


def _packed(files: dict[str, bytes], owner: str = "root") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in files.items():
            for each in reversed(Path(name).parents[:-1]):
                folder = tarfile.TarInfo(f"./{each}")
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(folder)
            entry = tarfile.TarInfo(name)
            entry.size, entry.uname = len(content), owner
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def _debian(root: Path) -> None:
    root.mkdir()
    package = deb()
    (root / f"{NAME}.deb").write_bytes(package)
    digest = hashlib.sha256(package).hexdigest()
    listed = (
        f"{_control()}Filename: ./{NAME}.deb\nSize: {len(package)}\nSHA256: {digest}\n"
    ).encode()
    (root / "Packages").write_bytes(listed)
    summed = f"{hashlib.sha256(listed).hexdigest()} {len(listed)} Packages"
    (root / "Release").write_text(f"Date: Wed, 01 Jan 2020 00:00:00 UTC\nSHA256:\n {summed}\n")


def _repository(root: Path) -> None:
    work = root / "work"
    work.mkdir(parents=True)
    (work / "README").write_text(WORDS)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.com")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "first")):
        subprocess.run([*git, *words], cwd=work, check=True)
    clone = ("clone", "-q", "--bare", str(work), str(root / f"{NAME}.git"))
    subprocess.run([*git, *clone], check=True)
    subprocess.run([*git, "update-server-info"], cwd=root / f"{NAME}.git", check=True)


def _sum(data: bytes) -> str:
    found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={found}"
