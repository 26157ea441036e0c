"""Who is calling, and may they: asked of the API server."""

from collections.abc import Mapping
from typing import Any

from .. import names
from ..api.backend import Caller
from ..api.common import JSON
from .api import Api
from .resources import ACCESS_REVIEWS, TOKEN_REVIEWS


def caller_of(user: Mapping[str, Any]) -> Caller:
    """A TokenReview's user."""
    extra = {key: tuple(values) for key, values in (user.get("extra") or {}).items()}
    return Caller(
        username=user["username"],
        uid=user.get("uid", ""),
        groups=tuple(user.get("groups") or ()),
        extra=extra,
    )


class ClusterReviewer:
    """TokenReview and SubjectAccessReview."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def review_token(self, token: str) -> Caller | None:
        """The token's owner, or None when it is not valid; raises TransientError."""
        body: JSON = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token},
        }
        status = (await self._api.create(TOKEN_REVIEWS, "", body)).get("status") or {}
        return caller_of(status["user"]) if status.get("authenticated") else None

    async def review_access(
        self, caller: Caller, verb: str, resource: str, subresource: str, namespace: str, name: str
    ) -> bool:
        """Whether RBAC allows it; raises TransientError."""
        attributes = {
            "group": names.GROUP,
            "verb": verb,
            "resource": resource,
            "subresource": subresource,
            "namespace": namespace,
            "name": name,
        }
        body: JSON = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": caller.username,
                "uid": caller.uid,
                "groups": list(caller.groups),
                "extra": {key: list(values) for key, values in caller.extra.items()},
                "resourceAttributes": {key: value for key, value in attributes.items() if value},
            },
        }
        status = (await self._api.create(ACCESS_REVIEWS, "", body)).get("status") or {}
        return bool(status.get("allowed"))
