"""Starts a container's program: writes its configuration, has it checked, and becomes it."""

import os
import resource
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import NoReturn

from . import places, render
from .settings import Settings

SQUID, HAPROXY, OPENSSL = "/usr/sbin/squid", "/usr/sbin/haproxy", "/usr/bin/openssl"

START_SECONDS = 60.0
_PAUSE = 0.05
TEMPLATES = Path("/usr/share/squid/errors/templates")


class LaunchError(Exception):
    """A program refuses its configuration; the message is what it says."""


def fitted(settings: Settings) -> Settings:
    """Raise this process's limit of file descriptors; the settings that it is enough for.

    The agent needs some for names that are being looked up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (wanted := min(hard, settings.descriptors)):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return settings.within(hard)


def front(settings: Settings) -> NoReturn:
    """Become haproxy; LaunchError."""
    path = places.OWN / "haproxy.cfg"
    layout = render.Layout(has_ipv6=_ipv6())
    path.write_text(render.front(settings, layout))
    _check(HAPROXY, "-c", "-f", str(path))
    # A socket of the process before this one: the agent must not take it for a haproxy that hangs.
    (places.FRONT / places.RUNTIME_SOCKET).unlink(missing_ok=True)
    os.execv(HAPROXY, [HAPROXY, "-db", "-f", str(path)])  # noqa: S606 - we become it


def names(settings: Settings) -> NoReturn:
    """Become the first squid; LaunchError."""
    # squid tries its parent once as it starts, and lets the first request fail where that failed.
    _wait_for(places.SNI_PORT)
    _squid(places.OWN / "squid.conf", render.names(settings))


def sni(settings: Settings) -> NoReturn:
    """Become the second squid; LaunchError."""
    pem = places.OWN / "unused.pem"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    paths = ("-keyout", str(pem), "-out", f"{pem}.crt")
    _check(OPENSSL, "req", "-x509", *key, *paths, "-subj", "/CN=unused", "-days", "3650")
    with pem.open("ab") as file:
        file.write(Path(f"{pem}.crt").read_bytes())
    _squid(places.OWN / "squid.conf", render.sni(settings))


def _squid(path: Path, text: str) -> NoReturn:
    path.write_text(text)
    # squid takes its pages from one folder only: its own, and ours beside them.
    errors = places.OWN / "errors"
    shutil.rmtree(errors, ignore_errors=True)
    shutil.copytree(TEMPLATES, errors)
    shutil.copytree(places.ERRORS, errors, dirs_exist_ok=True)
    _check(SQUID, "-k", "parse", "-f", str(path))
    # -d 1: what it has to say of itself goes to stderr. It starts its own worker again.
    os.execv(SQUID, [SQUID, "--foreground", "-d", "1", "-f", str(path)])  # noqa: S606


def _check(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LaunchError(f"{command[0]} refuses: {(done.stdout + done.stderr)[-2000:]}")


def _wait_for(port: int) -> None:
    """Wait until the port of another container listens; LaunchError after a minute."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection((places.LOOPBACK, port), timeout=1.0).close()
            return
        except OSError:
            time.sleep(_PAUSE)
    raise LaunchError(f"nothing listens on port {port} after {START_SECONDS:.0f} s")


def _ipv6() -> bool:
    """Whether sockets of IPv6 can listen here at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True
