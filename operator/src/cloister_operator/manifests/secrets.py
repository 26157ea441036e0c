"""Secrets, and what is public of them."""

import base64
from collections.abc import Mapping

from .. import names
from ..api.common import JSON
from ..api.environment import EnvironmentObject
from ..api.pod import PodView
from ..api.session import SessionObject
from ..recipe import Recipe
from ..settings import Settings
from .pods import pod_reference


def _encoded(data: Mapping[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}


def recipe_secret(environment: EnvironmentObject, recipe: Recipe) -> JSON:
    """The Secret that carries the recipe; its name contains the hash, so it never changes."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.recipe_secret(environment.metadata.name, recipe.hash),
            "namespace": environment.metadata.namespace,
            "labels": {
                names.MANAGED_BY_LABEL: names.MANAGED_BY,
                names.ENVIRONMENT_LABEL: environment.metadata.name,
                names.RECIPE_LABEL: recipe.hash,
            },
            "ownerReferences": [environment.owner_reference()],
        },
        "immutable": True,
        "data": _encoded(recipe.payload),
    }


def identity_secret(pod: PodView, certificate: bytes, key: bytes, ca: bytes) -> JSON:
    """The Secret with a pod's bootstrap identity, owned by the pod."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": pod.identity,
            "namespace": pod.namespace,
            "labels": {
                names.MANAGED_BY_LABEL: names.MANAGED_BY,
                names.ENVIRONMENT_LABEL: pod.environment,
            },
            "ownerReferences": [pod_reference(pod)],
        },
        "type": "kubernetes.io/tls",
        "immutable": True,
        "data": _encoded({"tls.crt": certificate, "tls.key": key, "ca.crt": ca}),
    }


def credentials_secret(session: SessionObject, certificate: bytes, key: bytes, ca: bytes) -> JSON:
    """The Secret with the client certificate of a Session made with kubectl."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.credentials_secret(session.metadata.name),
            "namespace": session.metadata.namespace,
            "labels": {
                names.MANAGED_BY_LABEL: names.MANAGED_BY,
                names.ENVIRONMENT_LABEL: session.spec.environment_name,
                names.SESSION_LABEL: session.metadata.uid,
            },
            "ownerReferences": [session.owner_reference()],
        },
        "type": "kubernetes.io/tls",
        "data": _encoded({"tls.crt": certificate, "tls.key": key, "ca.crt": ca}),
    }


def client_config(settings: Settings, ca: bytes, address: str, version: str) -> JSON:
    """The ConfigMap by which clients find the Sessions API."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.CLIENT_CONFIG,
            "namespace": settings.namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
        },
        "data": {
            "ca.crt": ca.decode(),
            "sessionsAddress": address,
            "sessionsServerName": names.SESSIONS_SERVER_NAME,
            "version": version,
        },
    }


def ca_secret(settings: Settings, data: Mapping[str, bytes]) -> JSON:
    """The Secret with the certificate authority."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": names.CA_SECRET,
            "namespace": settings.namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGED_BY},
        },
        "type": "kubernetes.io/tls",
        "data": _encoded(data),
    }
