"""Objects as the operator reads them, with one's own fields and the rest filled in."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cloister_operator import names
from cloister_operator.api.conditions import timestamp
from cloister_operator.api.environment import EnvironmentObject
from cloister_operator.api.pod import PodView
from cloister_operator.api.session import SessionObject
from cloister_operator.settings import Settings

JSON = dict[str, Any]
NAMESPACE = "cloister-sandboxes"
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def settings(**changes: Any) -> Settings:
    """The operator's settings."""
    return Settings(
        namespace="cloister-system",
        pod_ip="10.0.0.9",
        sandbox_namespaces=(NAMESPACE,),
        sandbox_image="registry.example/sandbox:1",
    ).model_copy(update=changes)


def environment_body(name: str = "py", **spec: Any) -> JSON:
    """An Environment as a person applies it."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.ENVIRONMENT_KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }


def session_body(
    name: str = "s1", environment: str = "py", annotations: JSON | None = None, **spec: Any
) -> JSON:
    """A Session as a person applies it."""
    metadata: JSON = {"name": name, "namespace": NAMESPACE}
    if annotations:
        metadata["annotations"] = annotations
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.SESSION_KIND,
        "metadata": metadata,
        "spec": {"environmentName": environment, **spec},
    }


def environment(name: str = "py", **spec: Any) -> EnvironmentObject:
    """An Environment as the API server has it."""
    body = environment_body(name, **spec)
    body["metadata"] |= {"uid": f"uid-of-{name}", "resourceVersion": "1", "generation": 1}
    return EnvironmentObject.parse(body)


def session(
    name: str = "s1", environment: str = "py", status: JSON | None = None, **spec: Any
) -> SessionObject:
    """A Session as the API server has it."""
    body = session_body(name, environment, **spec)
    body["metadata"] |= {
        "uid": f"uid-of-{name}",
        "resourceVersion": "1",
        "generation": 1,
        "creationTimestamp": timestamp(NOW),
    }
    body["status"] = status or {}
    return SessionObject.parse(body)


def pod(name: str = "p1", **fields: Any) -> PodView:
    """A sandbox pod: warm, of recipe `new`, made a minute ago, unless told otherwise."""
    given: JSON = {
        "namespace": NAMESPACE,
        "name": name,
        "uid": f"uid-of-{name}",
        "resource_version": 1,
        "created": NOW - timedelta(minutes=1),
        "environment": "py",
        "recipe": "new",
        "state": names.STATE_WARM,
        "session_uid": "",
        "session_name": "",
        "ip": "10.1.0.1",
        "phase": "Running",
        "deleting": False,
        "end": None,
        "trouble": None,
    }
    return PodView(**(given | fields))


def allowed(name: str, kind: str = "ConfigMap", **data: str) -> JSON:
    """An object that Environments and Sessions may name."""
    return {
        "metadata": {"name": name, "labels": {names.ALLOW_LABEL: "true"}},
        "kind": kind,
        "data": data,
    }
