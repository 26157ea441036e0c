"""What Environments stand on: their namespace, its NetworkPolicies, the egress gateways."""

import asyncio

from .. import manifests, names
from ..api import conditions
from ..api.environment import EnvironmentObject
from ..cluster.resources import NAMESPACES, NETWORK_POLICIES
from ..errors import PermanentError
from . import bootstrap
from .context import Context

RECHECKED_AFTER_SECONDS = 70.0
"""A little more than the resync, which lets everything be asked for anew: policies are applied, and
references read, once for each."""
_ENFORCED = {"strict": "restricted", "rootish": "baseline"}
"""By profile, the level of Pod Security that its namespace must enforce."""


class Grounds:
    """Makes and checks them for one process, each again after a while."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._applied: dict[str, tuple[str, float, tuple[str, ...] | None]] = {}
        """By namespace: its UID, as another one of the same name has no policies yet; when they
        were applied; and the ranges that they keep away.
        """
        self._gateway: tuple[float, str] = (float("-inf"), "")

    def current(self, namespace: str) -> bool:
        """Whether the policies of a namespace are those of the cluster's present addresses."""
        *_, ranges = self._applied.get(namespace, ("", 0.0, None))
        return namespace in self._applied and ranges == self._context.ranges.current

    def look_anew(self) -> None:
        """Ask again, when next asked, for what is not watched."""
        self._gateway = float("-inf"), self._gateway[1]
        for namespace, (uid, _, ranges) in self._applied.items():
            self._applied[namespace] = uid, float("-inf"), ranges

    async def prepare(self, environment: EnvironmentObject) -> None:
        """Check the namespace, then apply its policies: they stand before any pod does.

        Raises PermanentError for a namespace that does not take part, or does not hold pods as
        strictly as the Environment's profile wants it, and where the cluster's addresses, which an
        unrestricted sandbox must not reach, are not known.
        """
        namespace = environment.metadata.namespace
        uid = await self._check_namespace(namespace, environment.spec.isolation.profile)
        await self._ensure_policies(namespace, uid)
        unrestricted = environment.spec.networking.type == "unrestricted"
        if unrestricted and self._context.ranges.current is None:
            raise PermanentError(
                conditions.RANGES_UNKNOWN,
                "the cluster's own addresses, which unrestricted sandboxes must not reach, are not "
                "known yet: the operator could not list nodes, Services or Ingresses",
                "spec.networking.type",
            )

    async def gateway(self) -> str:
        """host:port of the egress gateways; empty where there are none."""
        now = _seconds()
        asked, address = self._gateway
        if now >= asked + RECHECKED_AFTER_SECONDS:
            address = await bootstrap.gateway_address(self._context.api, self._context.settings)
            self._gateway = now, address
            self._context.gateway = address
        return address

    async def _check_namespace(self, namespace: str, profile: str) -> str:
        """The namespace's UID; raises PermanentError for one that sandboxes may not be in."""
        context = self._context
        if namespace not in context.settings.sandbox_namespaces:
            raise PermanentError(
                conditions.NAMESPACE_NOT_ENABLED,
                f"namespace {namespace} is not open for sandboxes; the platform adds it to "
                "sandboxNamespaces in the chart's values",
            )
        found = await context.api.get(NAMESPACES, "", namespace)
        metadata = found["metadata"]
        labels = metadata.get("labels") or {}
        if labels.get(names.SANDBOXES_LABEL) != "enabled":
            raise PermanentError(
                conditions.NAMESPACE_NOT_ENABLED,
                f"namespace {namespace} lacks the label {names.SANDBOXES_LABEL}=enabled",
            )
        wanted = _ENFORCED[profile]
        if labels.get("pod-security.kubernetes.io/enforce") != wanted:
            raise PermanentError(
                conditions.NAMESPACE_NOT_ENABLED,
                f"namespace {namespace} must enforce Pod Security for profile {profile}: label it "
                f"pod-security.kubernetes.io/enforce={wanted}",
            )
        uid: str = metadata["uid"]
        return uid

    async def _ensure_policies(self, namespace: str, uid: str) -> None:
        context = self._context
        ranges = context.ranges.current
        of, applied, known = self._applied.get(namespace, ("", float("-inf"), None))
        if of == uid and _seconds() < applied + RECHECKED_AFTER_SECONDS and known == ranges:
            return
        for policy in manifests.network_policies(namespace, context.settings, ranges):
            await context.api.apply(NETWORK_POLICIES, namespace, policy)
        self._applied[namespace] = uid, _seconds(), ranges


def _seconds() -> float:
    """The event loop's clock."""
    return asyncio.get_running_loop().time()
