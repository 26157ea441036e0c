"""What an image build takes from outside the tree: a Debian base, and Python wheels.

Both are fetched before the build, by the clients whose mirrors this machine has configured, so that
the build itself needs no network.
"""

import hashlib
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import ClusterError
from .places import cache

SUITE = "bookworm"
LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
"""Documentation that no program reads; copyright files stay."""
_SUITES = {SUITE, f"{SUITE}-updates", f"{SUITE}-security"}


def package_list(path: Path) -> list[str]:
    """The packages that a packages.*.txt names."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def base_key(packages: Sequence[str]) -> str:
    """Names the base with these packages: the same key, the same content but for Debian's fixes."""
    text = "\n".join([SUITE, *LEFT_OUT, *sorted(packages)])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def base_archive(packages: Sequence[str], key: str) -> Path:
    """A tar of Debian with these packages; made when it is not in the cache."""
    archive = cache() / "images" / f"debian-{key}.tar"
    if archive.exists():
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = archive.with_suffix(".new.tar")
    options = [f"--dpkgopt=path-exclude={each}" for each in LEFT_OUT]
    options.append("--dpkgopt=path-include=/usr/share/doc/*/copyright")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}"]
    done = subprocess.run(
        [*command, *options, SUITE, str(fresh), *_sources()],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        fresh.unlink(missing_ok=True)
        raise ClusterError(f"mmdebstrap failed: {done.stderr.strip()[-2000:]}")
    fresh.rename(archive)
    return archive


def root_folder(packages: Sequence[str]) -> Path:
    """Where `unpack` puts the base with these packages."""
    return cache() / "roots" / base_key(packages)


def unpack(packages: Sequence[str]) -> Path:
    """Debian with these packages as a folder, for tests; made when it is not there."""
    folder = root_folder(packages)
    if folder.exists():
        return folder
    archive = base_archive(packages, base_key(packages))
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "dev").mkdir(parents=True)
    command = ["tar", "--extract", f"--file={archive}", f"--directory={fresh}", "--exclude=./dev"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"Debian cannot be unpacked: {done.stderr.strip()[-2000:]}")
    fresh.rename(folder)
    return folder


def is_debian_source(text: str) -> bool:
    """Whether a sources file of apt, in either format, speaks of this release of Debian only."""
    suites: set[str] = set()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() == "suites":
            suites |= set(value.split())
        elif line.startswith("deb "):
            words = re.sub(r"\[.*?\]", "", line).split()
            suites.add(words[2] if len(words) > 2 else "")
    return bool(suites) and suites <= _SUITES


def _sources() -> list[str]:
    """This machine's own mirrors of Debian; empty lets mmdebstrap take its default."""
    folder = Path("/etc/apt/sources.list.d")
    files = [Path("/etc/apt/sources.list"), *sorted(folder.glob("*.list"))]
    files += sorted(folder.glob("*.sources"))
    return [str(path) for path in files if path.exists() and is_debian_source(path.read_text())]


def wheels(requirements: Path) -> Path:
    """A folder with the wheels of a lock, for Debian's Python; filled when it is not in the cache.

    pip checks each against the lock's hashes.
    """
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    text = requirements.read_bytes() + machine.encode()
    folder = cache() / "wheels" / f"{requirements.stem}-{hashlib.sha256(text).hexdigest()[:10]}"
    if folder.exists():
        return folder
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tags = [f"manylinux_2_{each}_{machine}" for each in (36, 34, 31, 28, 27, 26, 24, 17, 12, 5)]
    tags += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]
    command = [str(_pip()), "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--require-hashes", "--implementation=cp"]
    command += ["--python-version=3.11", "--abi=cp311", "--abi=abi3", "--abi=none"]
    command += [f"--platform={each}" for each in tags]
    done = subprocess.run(
        [*command, "-r", str(requirements), "-d", str(fresh)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"pip cannot download {requirements.name}: {done.stderr.strip()}")
    fresh.rename(folder)
    return folder


def _pip() -> Path:
    """A pip of our own: Debian's Python comes without one."""
    folder = cache() / "pip"
    pip = folder / "bin" / "pip"
    if not pip.exists():
        done = subprocess.run(
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"python3 -m venv failed: {done.stdout.strip()}")
    return pip
