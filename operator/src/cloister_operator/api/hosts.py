"""Names of hosts that sandboxes may be allowed to reach: which are accepted, and their one form."""

import functools
import re
from urllib.parse import urlsplit

import idna
from publicsuffixlist import PublicSuffixList

from ..errors import PermanentError
from . import conditions

MAX_HOSTS = 256
"""Of one Environment, those of MCP servers and package managers included."""
_LONGEST = 253
_NAME = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII
)
_INSIDE = ("localhost", "localdomain", "local", "internal", "svc", "cluster.local", "home.arpa")
"""Names of machines, of networks at home or at work, and of clusters: none is of the internet."""
_HTTPS_PORT = 443


@functools.cache
def _suffixes() -> PublicSuffixList:
    # Read when it is first asked for: it takes some 40 ms.
    return PublicSuffixList(accept_unknown=False)


def host(text: str, field: str, cluster_domain: str = "cluster.local") -> str:
    """A name such as `example.com` or `*.example.com` in the form in which names are compared.

    Capital letters become small ones, and letters outside ASCII the A-labels that DNS knows.
    `*.` stands for all names below the rest, without the rest itself.

    Args:
        text: The name as somebody wrote it.
        field: Where they wrote it, such as `spec.networking.allowedHosts[2]`.
        cluster_domain: The cluster's own domain, in which no name is accepted.

    Raises:
        PermanentError: It is no name of a host on the internet; names the field.
    """
    below = text.removeprefix("*.")
    wildcard = below != text
    name = _ascii(below, field)
    whole = f"*.{name}" if wildcard else name
    if len(whole) > _LONGEST or not _NAME.fullmatch(name):
        raise _refused(
            field,
            text,
            "takes public host names such as example.com or *.example.com: "
            "no scheme, port, path or address",
        )
    for inside in (*_INSIDE, cluster_domain.lower().strip(".")):
        if name == inside or name.endswith(f".{inside}"):
            raise _refused(field, text, f"takes no names of this cluster or machine ({inside})")
    if wildcard and _suffixes().is_public(name):
        raise _refused(
            field, text, f"takes no wildcard over {name}, where anybody can register a name"
        )
    return whole


def of_url(text: str, field: str, cluster_domain: str = "cluster.local") -> str:
    """The host of an `https` URL; raises PermanentError that names the field."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _refused(field, text, "takes URLs such as https://mcp.example.com/mcp") from None
    if parts.scheme != "https" or parts.username is not None or parts.password is not None:
        raise _refused(
            field, text, "takes URLs such as https://mcp.example.com/mcp: https, and no user"
        )
    if parts.query or parts.fragment:
        raise _refused(field, text, "takes URLs without query and fragment")
    if port not in (None, _HTTPS_PORT):
        raise _refused(field, text, f"takes URLs of port {_HTTPS_PORT}, which alone can be reached")
    if "*" in parts.netloc:
        raise _refused(field, text, "takes no wildcard")
    return host(parts.hostname or "", field, cluster_domain)


def _ascii(name: str, field: str) -> str:
    try:
        return idna.encode(name, uts46=True, std3_rules=True).decode()
    except (idna.IDNAError, UnicodeError):
        pass
    # Names that are in use and that IDNA has no word for, such as those with `--` inside.
    lowered = name.lower()
    if lowered.isascii() and not any(each.startswith("xn--") for each in lowered.split(".")):
        return lowered
    raise _refused(field, name, "takes names that IDNA knows")


def _refused(field: str, text: str, sentence: str) -> PermanentError:
    shown = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    return PermanentError(conditions.INVALID_SPEC, f"{shown!r} is refused: it {sentence}", field)
