"""The kinds of sandboxes that attacks are tried from."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import cloister
from redteam.attacks import arm
from support.cluster import JSON, SANDBOXES, apply, condition, environment, get, kubectl, wait_for
from support.fake_internet_names import ALLOWED, GIT, INDEX, PACKAGES, TO, WILD

ROOTISH = "cloister-rootish"
"""A namespace that enforces Pod Security baseline, where sandboxes have root."""
ALLOWED_HOSTS = [ALLOWED, INDEX, PACKAGES, GIT, f"*.{WILD}", f"*.{TO}"]
START = 120.0
SMALL = {"pool": {"size": 1}, "resources": {"memory": "384Mi", "disk": "2Gi"}}
"""Many of them are there at once, on a developer's machine."""


@dataclass(frozen=True)
class Kind:
    """A kind of sandbox: what it runs as, and what it may reach."""

    name: str
    spec: JSON
    namespace: str = SANDBOXES

    def with_network(self, name: str, networking: JSON) -> "Kind":
        """The same with another network."""
        spec = {**self.spec, "networking": networking}
        return Kind(f"{name}-{self.name}", spec, self.namespace)


STRICT = Kind("strict", {})
GVISOR = Kind("gvisor", {"isolation": {"runtimeClassName": "gvisor"}})
ROOT = Kind("rootish", {"isolation": {"profile": "rootish"}}, ROOTISH)
ROOT_GVISOR = Kind(
    "rootish-gvisor", {"isolation": {"profile": "rootish", "runtimeClassName": "gvisor"}}, ROOTISH
)
BODIES = (STRICT, GVISOR, ROOT)
SEALED = tuple(each.with_network("none", {}) for each in (*BODIES, ROOT_GVISOR))
"""They may reach nothing."""
NAMED = tuple(each.with_network("gateway", {"allowedHosts": ALLOWED_HOSTS}) for each in BODIES)
"""They may reach a few names through the gateway."""
OPEN = tuple(each.with_network("open", {"type": "unrestricted"}) for each in BODIES)
"""They may reach the internet, and nothing else."""


class Sandboxes:
    """Sessions to attack from, one for each kind, made when it is first asked for."""

    def __init__(self, held: ExitStack) -> None:
        self._held = held
        self._clients: dict[str, cloister.Client] = {}
        self._made: dict[str, cloister.Session] = {}

    def of(self, kind: Kind) -> cloister.Session:
        """The session of a kind."""
        if kind.name not in self._made:
            self._made[kind.name] = self.session(kind, self.environment(kind))
        return self._made[kind.name]

    def environment(self, kind: Kind, *, ready: bool = True, **more: Any) -> str:
        """Make an Environment, which goes at the end; with `ready`, wait until it is Ready."""
        name = f"r-{secrets.token_hex(4)}"
        manifest = environment(name, **{**SMALL, **kind.spec, **more})
        manifest["metadata"]["namespace"] = kind.namespace
        apply(manifest)
        self._held.callback(_delete, name, kind.namespace)
        if ready:
            wait_ready(name, kind.namespace)
        return name

    def session(self, kind: Kind, environment: str) -> cloister.Session:
        """One more session of an Environment, which goes at the end."""
        client = self.client(kind.namespace)
        session = self._held.enter_context(client.create_session(environment, wait=START))
        arm(session)
        # The pod that takes its place in the pool is tried by the operator, before it is closed.
        wait_for("a full pool", lambda: _full(environment, kind.namespace), START)
        return session

    @contextmanager
    def passing(self) -> Iterator["Sandboxes"]:
        """More of them, which go at once when they are not needed any more."""
        with ExitStack() as held:
            yield Sandboxes(held)

    def client(self, namespace: str) -> cloister.Client:
        """The client library, on the node."""
        if namespace not in self._clients:
            self._clients[namespace] = self._held.enter_context(
                cloister.Client(namespace=namespace, direct=True)
            )
        return self._clients[namespace]


def wait_ready(name: str, namespace: str, status: str = "True") -> JSON:
    """Wait until an Environment says that it is Ready, or that it is not."""
    last: JSON = {}

    def look() -> JSON | None:
        nonlocal last
        last = get("environment", name, namespace) or {}
        return last if condition(last, "Ready").get("status") == status else None

    try:
        return wait_for(f"Environment {name} Ready={status}", look, START)
    except AssertionError as error:
        raise AssertionError(f"{error}; its status: {last.get('status')}") from None


def _full(name: str, namespace: str) -> bool | None:
    found = get("environment", name, namespace) or {}
    counts = (found.get("status") or {}).get("pool") or {}
    return counts.get("ready", 0) >= found["spec"]["pool"]["size"] or None


def _delete(name: str, namespace: str) -> None:
    kubectl("delete", "environment", name, "-n", namespace, "--wait=false", "--ignore-not-found")
