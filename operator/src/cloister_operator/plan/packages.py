"""Where package managers get their packages: what images say of it, and what the platform says."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ..api.environment import PackageManagers, PackageSource
from ..api.hosts import host
from ..errors import PermanentError
from ..settings import Settings

MANAGERS = ("apt", "cargo", "gem", "go", "go-checksums", "npm", "pip")
MAX_URLS = 32
"""Of one manager."""
_URL = re.compile(r"https?://[A-Za-z0-9.-]{1,253}(:[0-9]{1,5})?(/[A-Za-z0-9._~%/+@-]{0,512})?")
_PORTS = {"http": 80, "https": 443}
_VARIABLES = {"go": "GOPROXY", "npm": "npm_config_registry", "pip": "PIP_INDEX_URL"}


@dataclass(frozen=True)
class Packages:
    """What sandboxes are given for their package managers."""

    hosts: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    """Settings of the tools; a variable of the Environment's own wins."""


def must_ask(settings: Settings) -> bool:
    """Whether only the image knows."""
    return not settings.egress_package_hosts


def read(image: str, answers: Sequence[tuple[str, Sequence[str]]]) -> PackageManagers:
    """What an image's tools answered, as far as it may be believed.

    Args:
        image: The image that was asked.
        answers: Managers and their URLs, as somebody in a pod wrote them: anything at all.

    Returns:
        Known managers with URLs of public hosts on the usual ports, bounded and in order.
    """
    found: dict[str, set[str]] = {}
    for manager, urls in answers:
        if manager in MANAGERS:
            good = {each for each in urls[:MAX_URLS] if _host_of(each)}
            found.setdefault(manager, set()).update(good)
    return PackageManagers(
        image=image,
        sources=[
            PackageSource(manager=manager, urls=sorted(urls)[:MAX_URLS])
            for manager, urls in sorted(found.items())
            if urls
        ],
    )


def packages(settings: Settings, said: PackageManagers | None) -> Packages:
    """Hosts and settings of package managers: the platform's word, and what it leaves to images."""
    mirrors = settings.egress_mirrors
    urls = dict(mirrors)
    hosts = {found for each in mirrors.values() if (found := _host_of(each))}
    hosts.update(settings.egress_package_hosts)
    if must_ask(settings) and said:
        for source in said.sources:
            if source.manager in mirrors:
                continue
            hosts.update(found for each in source.urls if (found := _host_of(each)))
            if source.manager == "go" and source.urls:
                # The tool's own default goes on to other hosts after its proxy.
                urls["go"] = ",".join(source.urls)
    variables = {_VARIABLES[name]: url for name, url in urls.items() if url}
    return Packages(tuple(sorted(hosts)), variables)


def _host_of(url: str) -> str | None:
    if not isinstance(url, str) or not _URL.fullmatch(url):
        return None
    parts = urlsplit(url)
    try:
        if parts.port not in (None, _PORTS[parts.scheme]):
            return None
        return host(parts.hostname or "", "url")
    except (PermanentError, ValueError):
        return None
