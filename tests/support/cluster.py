"""What end-to-end tests use of a cluster: kubectl, waiting for predicates, and cleaning up."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

SYSTEM = "cloister-system"
SANDBOXES = "cloister-sandboxes"
SANDBOX_IMAGE = "localhost/cloister/sandbox:dev"
KUBECTL = os.environ.get("KUBECTL", "kubectl")

JSON = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """How a program ended."""

    code: int
    out: str
    err: str


def kubectl(*args: str, stdin: str | None = None, check: bool = True) -> Result:
    """Run kubectl; a failure raises AssertionError with its words, unless check is False."""
    done = subprocess.run(
        [KUBECTL, *args], input=stdin, capture_output=True, text=True, check=False, timeout=180
    )
    result = Result(done.returncode, done.stdout, done.stderr)
    if check and result.code:
        raise AssertionError(f"kubectl {' '.join(args)}: {result.err}")
    return result


def get(kind: str, name: str, namespace: str = SANDBOXES) -> JSON | None:
    """An object as the API server has it, or None."""
    result = kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
    found: JSON | None = json.loads(result.out) if result.out.strip() else None
    return found


def listing(kind: str, selector: str = "", namespace: str = SANDBOXES) -> list[JSON]:
    """All objects of a kind with these labels."""
    args = ["get", kind, "-n", namespace, "-o", "json"]
    if selector:
        args += ["-l", selector]
    items: list[JSON] = json.loads(kubectl(*args).out)["items"]
    return items


def apply(*objects: JSON) -> None:
    """kubectl apply."""
    kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    )


def wait_for(what: str, look: Callable[[], T | None], deadline: float = 60) -> T:
    """Look until it finds something, for at most `deadline` seconds; AssertionError names what."""
    end = time.monotonic() + deadline
    while True:
        found = look()
        if found is not None:
            return found
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        time.sleep(0.1)


def wait_gone(kind: str, name: str, deadline: float = 60) -> None:
    """Wait until an object does not exist any more."""
    wait_for(f"{kind}/{name} gone", lambda: get(kind, name) is None or None, deadline)


def condition(obj: JSON | None, kind: str) -> JSON:
    """A condition of an object's status, or an empty one."""
    for each in ((obj or {}).get("status") or {}).get("conditions", []):
        if each["type"] == kind:
            return dict(each)
    return {}


def wait_condition(
    kind: str, name: str, type_: str, status: str = "True", deadline: float = 60
) -> JSON:
    """Wait until a condition has a status; the object is returned."""
    last: JSON = {}

    def look() -> JSON | None:
        nonlocal last
        last = get(kind, name) or {}
        return last if condition(last, type_).get("status") == status else None

    try:
        return wait_for(f"{kind}/{name} {type_}={status}", look, deadline)
    except AssertionError as error:
        raise AssertionError(f"{error}; its status: {json.dumps(last.get('status'))}") from None


def wait_phase(name: str, phase: str, deadline: float = 60) -> JSON:
    """Wait until a Session is in a phase; it is returned, and its last status named otherwise."""
    last: JSON = {}

    def look() -> JSON | None:
        nonlocal last
        last = get("session", name) or {}
        return last if (last.get("status") or {}).get("phase") == phase else None

    try:
        return wait_for(f"session {name} {phase}", look, deadline)
    except AssertionError as error:
        raise AssertionError(f"{error}; its status: {json.dumps(last.get('status'))}") from None


def wait_reason(
    kind: str, name: str, type_: str, reasons: tuple[str, ...], deadline: float = 60
) -> JSON:
    """Wait until a condition has one of these reasons; the condition is returned."""
    last: JSON = {}

    def look() -> JSON | None:
        nonlocal last
        last = condition(get(kind, name), type_)
        return last if last.get("reason") in reasons else None

    try:
        return wait_for(f"{kind}/{name} {type_} {'/'.join(reasons)}", look, deadline)
    except AssertionError as error:
        raise AssertionError(f"{error}; it is: {json.dumps(last)}") from None


def environment(name: str, **spec: Any) -> JSON:
    """An Environment manifest."""
    return {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "Environment",
        "metadata": {"name": name, "namespace": SANDBOXES},
        "spec": spec,
    }


def session(name: str, environment_name: str, **spec: Any) -> JSON:
    """A Session manifest."""
    return {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "Session",
        "metadata": {"name": name, "namespace": SANDBOXES},
        "spec": {"environmentName": environment_name, **spec},
    }
