"""From where repositories may be fetched, with what, and when to look at them again."""

import base64
import binascii
import fnmatch
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from .. import names
from ..api import conditions
from ..api.common import JSON, FileSpec, GitSource
from ..api.environment import EnvironmentObject
from ..errors import PermanentError
from ..settings import Settings
from .ranges import INTERNET_V4, INTERNET_V6, SPECIAL_V4, SPECIAL_V6

_URL = re.compile(
    r"https://(?P<host>(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?/(?P<path>[A-Za-z0-9._~%+@/-]{1,400})",
    re.ASCII | re.IGNORECASE,
)
_DISGUISED = re.compile(r"%(?:[01][0-9a-f]|7f|25|2e|2f|3b|5c)", re.ASCII | re.IGNORECASE)
"""Control characters and `% . / ;` and the backslash, encoded: the server's path would be another
one than that which is compared with where credentials may go."""
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/@+#-]{0,255}", re.ASCII)
_OBJECT_ID = re.compile(r"[0-9a-f]{40}")
_MAX_SECRET = 4096
_HTTPS = 443
_NEVER_TEXT = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "168.63.129.16/32",
    "100.100.100.200/32",
    "192.0.0.192/32",
    "224.0.0.0/3",
    "::/8",
    "64:ff9b::/32",
    "2001::/32",
    "2002::/16",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
    "fd00:c1::a9fe:a9fe/128",
    "fd00:42::42/128",
)
"""Loopback, link-local, multicast, tunnels to IPv4, and the metadata services of clouds: whatever
ranges the platform names for its git servers."""
_NEVER = tuple(ipaddress.ip_network(each) for each in _NEVER_TEXT)


@dataclass(frozen=True)
class Login:
    """What a Secret says of who fetches."""

    username: str
    password: str

    def __repr__(self) -> str:
        return "Login(...)"


def sources(environment: EnvironmentObject) -> list[tuple[int, FileSpec, GitSource]]:
    """The files that are git repositories, and their places in the spec."""
    found = enumerate(environment.spec.files)
    return [(index, file, file.git) for index, file in found if file.git]


def field(index: int, rest: str = "") -> str:
    """Where the spec names a repository."""
    return f"spec.files[{index}].git{rest}"


def check(git: GitSource, index: int, settings: Settings) -> None:
    """Raise PermanentError, naming the field, for what is not fetched at all."""
    found = _URL.fullmatch(git.url)
    parts = (found["path"] if found else "").split("/")
    climbs = "." in parts or ".." in parts or _DISGUISED.search(git.url) is not None
    if found is None or climbs or int(found["port"] or 1) > 65535:
        raise PermanentError(
            conditions.INVALID_SPEC,
            "a repository's URL must be like https://git.example.com/team/project.git: https, a "
            "host name, no user, query or fragment",
            field(index, ".url"),
        )
    if git.ref is not None and (not _REF.fullmatch(git.ref) or ".." in git.ref):
        raise PermanentError(
            conditions.INVALID_SPEC,
            "ref must be a branch, a tag or a whole commit id",
            field(index, ".ref"),
        )
    host, port = found["host"].lower(), int(found["port"] or _HTTPS)
    if not _allowed(host, port, settings.git_allowed_hosts):
        allowed = ", ".join(settings.git_allowed_hosts) or "none"
        raise PermanentError(
            conditions.GIT_FETCH_FAILED,
            f"repositories of {host}:{port} are not fetched: the platform allows these hosts, with "
            f"git.allowedHosts in the chart's values: {allowed}",
            field(index, ".url"),
        )


def _allowed(host: str, port: int, globs: Sequence[str]) -> bool:
    for each in globs:
        name, _, number = each.lower().partition(":")
        if int(number or _HTTPS) == port and fnmatch.fnmatchcase(host, name):
            return True
    return False


def is_commit(ref: str | None) -> bool:
    """Whether it stands for the same for ever."""
    return ref is not None and _OBJECT_ID.fullmatch(ref) is not None


def dialable(address: str, own: Sequence[str], private: Sequence[str]) -> bool:
    """Whether the operator may connect to a git server there.

    Args:
        address: An IP address to which a name was resolved.
        own: The cluster's own ranges.
        private: Ranges of private addresses in which the platform has its git servers.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    special: Sequence[str]
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id or found.ipv4_mapped:
            return False
        base, special = INTERNET_V6, SPECIAL_V6
    else:
        base, special = INTERNET_V4, SPECIAL_V4
    if any(found in each for each in (*_NEVER, *map(ipaddress.ip_network, own))):
        return False
    if any(found in ipaddress.ip_network(each) for each in private):
        return True
    inside = any(found in ipaddress.ip_network(each) for each in special)
    return found in base and not inside and found.is_global


def login(name: str, found: JSON | None, url: str, where: str) -> Login:
    """The credentials in a Secret (None: it does not exist) for a repository.

    Raises PermanentError that names the field, and quotes nothing of the Secret.
    """
    what = f"Secret {name}"
    if found is None:
        raise PermanentError(
            conditions.REFERENCE_NOT_FOUND,
            f"{what} does not exist in this namespace; create it",
            where,
        )
    metadata = found.get("metadata", {})
    labels = metadata.get("labels") or {}
    if labels.get(names.GIT_LABEL) != "true":
        raise PermanentError(
            conditions.REFERENCE_REFUSED,
            f"{what} is not for fetching repositories: the platform allows it with the label "
            f"{names.GIT_LABEL}=true",
            where,
        )
    if labels.get(names.ALLOW_LABEL) == "true":
        raise PermanentError(
            conditions.REFERENCE_REFUSED,
            f"{what} is open to sandboxes by the label {names.ALLOW_LABEL}=true, which credentials "
            "for repositories must not be; take one of the two labels away",
            where,
        )
    given = (metadata.get("annotations") or {}).get(names.GIT_URLS)
    if given is not None and not any(_begins(url, each.strip()) for each in given.split(",")):
        raise PermanentError(
            conditions.REFERENCE_REFUSED,
            f"{what} is for other repositories: its annotation {names.GIT_URLS} names the "
            "beginnings of their URLs",
            where,
        )
    data = found.get("data") or {}
    password = _text(data, "password", where, what) or _text(data, "token", where, what)
    if not password:
        raise PermanentError(
            conditions.REFERENCE_NOT_FOUND,
            f"{what} has neither a key password nor a key token",
            where,
        )
    # Git hosts that take a token take any name with it.
    return Login(_text(data, "username", where, what) or "git", password)


def _begins(url: str, prefix: str) -> bool:
    parts = urlsplit(prefix)
    if parts.scheme != "https" or not parts.hostname:
        return False
    whole = prefix if parts.path else f"{prefix}/"
    return url == whole or url.startswith(whole if whole.endswith("/") else f"{whole}/")


def _text(data: JSON, key: str, where: str, what: str) -> str:
    try:
        text = base64.b64decode(data.get(key) or "", validate=True).decode().strip()
    except (binascii.Error, UnicodeDecodeError):
        text = "\0"
    if len(text) > _MAX_SECRET or not text.isprintable() or (key == "username" and ":" in text):
        raise PermanentError(
            conditions.INVALID_SPEC,
            f"the key {key} of {what} must be one line of printable text",
            where,
        )
    return text
