"""Sandbox pods, and the volume claims of their workspaces."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from .. import names
from ..api.common import JSON
from ..api.environment import EnvironmentObject, Isolation
from ..api.pod import PodView
from ..api.session import SessionObject
from ..recipe import Recipe
from ..settings import Settings

AGENT_UID = 1000
ROOT_UID = 0
ROOT_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID")
"""What installing Debian packages takes, and no more: none reaches outside the user namespace."""
_WORKSPACE = {"workspace": "/workspace"}
_OF_THE_SESSION = {"uploads": "/mnt/session/uploads", "outputs": "/mnt/session/outputs"}
_OF_THE_POD = {"tmp": "/tmp", "home": "/home/agent"}  # noqa: S108 - the pod's own
KEPT = tuple((_WORKSPACE | _OF_THE_SESSION).values())
"""What lies on the volume of a persistent workspace."""


@dataclass(frozen=True)
class SandboxPod:
    """A pod to be made: warm for a pool, or claimed by a session from the start."""

    name: str
    environment: EnvironmentObject
    recipe: Recipe
    session: SessionObject | None = None
    claim: str | None = None
    """The PersistentVolumeClaim with its workspace; None makes one that ends with the pod."""
    identity: str = ""
    """The Secret with its identity; empty for one of the pod's name."""


def sandbox_pod(pod: SandboxPod, settings: Settings) -> JSON:
    """The pod: with the profile `strict` it passes Pod Security `restricted`, with `rootish`
    `baseline`.
    """
    environment, spec = pod.environment, pod.environment.spec
    labels = _copied_labels(pod, settings) | {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.ENVIRONMENT_LABEL: environment.metadata.name,
        names.RECIPE_LABEL: pod.recipe.hash,
        names.STATE_LABEL: names.STATE_CLAIMED if pod.session else names.STATE_STARTING,
        names.NETWORK_LABEL: pod.recipe.reach.network,
    }
    owner = environment.owner_reference()
    if pod.session:
        labels[names.SESSION_LABEL] = pod.session.metadata.uid
        owner = pod.session.owner_reference()
    manifest: JSON = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": environment.metadata.namespace,
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "hostname": "sandbox",
            "hostUsers": not settings.user_namespaces(spec.isolation.runtime_class_name),
            "dnsPolicy": "None",
            "dnsConfig": _resolver(pod, settings),
            "securityContext": _user(spec.isolation),
            "containers": [_container(pod, settings)],
            "volumes": _volumes(pod, settings),
        },
    }
    if aliases := pod.recipe.aliases:
        spec_of_pod: JSON = manifest["spec"]
        spec_of_pod["hostAliases"] = [{"ip": aliases.address, "hostnames": list(aliases.hosts)}]
    annotations = {}
    if pod.recipe.reach.hosts:
        annotations[names.EGRESS_HOSTS] = ",".join(pod.recipe.reach.hosts)
    if pod.recipe.trees:
        trees = [asdict(each) for each in pod.recipe.trees]
        annotations[names.GIT_TREES] = json.dumps(trees, sort_keys=True)
    if annotations:
        manifest["metadata"]["annotations"] = annotations
    _schedule(manifest["spec"], pod)
    if spec.isolation.runtime_class_name:
        manifest["spec"]["runtimeClassName"] = spec.isolation.runtime_class_name
    return manifest


def _resolver(pod: SandboxPod, settings: Settings) -> JSON:
    if pod.recipe.reach.network == names.NETWORK_UNRESTRICTED:
        # Not the cluster's: it would tell the names of all Services.
        return {
            "nameservers": list(settings.egress_nameservers),
            "searches": [],
            "options": [{"name": "ndots", "value": "1"}],
        }
    # None: a resolver would be a way out, and the egress gateways resolve names themselves.
    return {"nameservers": ["127.0.0.1"]}


def _user(isolation: Isolation) -> JSON:
    uid = ROOT_UID if isolation.profile == "rootish" else AGENT_UID
    return {
        **({} if uid == ROOT_UID else {"runAsNonRoot": True}),
        "runAsUser": uid,
        "runAsGroup": uid,
        "fsGroup": uid,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _privileges(isolation: Isolation) -> JSON:
    rootish = isolation.profile == "rootish"
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], **({"add": list(ROOT_CAPABILITIES)} if rootish else {})},
        "readOnlyRootFilesystem": not rootish,
    }


def _copied_labels(pod: SandboxPod, settings: Settings) -> dict[str, str]:
    sources = [pod.environment.metadata.labels]
    if pod.session:
        sources.append(pod.session.metadata.labels)
    return {
        key: labels[key] for labels in sources for key in settings.copied_labels if key in labels
    }


def _container(pod: SandboxPod, settings: Settings) -> JSON:
    resources = pod.environment.spec.resources
    limits: JSON = {
        "cpu": str(resources.cpu or settings.default_cpu),
        "memory": str(resources.memory or settings.default_memory),
        "ephemeral-storage": str(resources.disk or settings.default_disk),
        **{key: str(value) for key, value in resources.extended.items()},
    }
    # Memory and disk are reserved whole, since neither can be taken back; a share of a CPU is
    # enough for a sandbox that mostly waits for its model.
    requests = {**limits, "cpu": "50m"}
    mounts = [
        *_writable(pod),
        {"name": "state", "mountPath": "/run/cloister/state"},
        {"name": names.IDENTITY_VOLUME, "mountPath": "/run/cloister/identity", "readOnly": True},
        {"name": "recipe", "mountPath": "/run/cloister/recipe", "readOnly": True},
        *(
            {"name": "files", "mountPath": mount.path, "subPath": mount.key, "readOnly": True}
            for mount in pod.recipe.mounts
        ),
    ]
    return {
        "name": names.CONTAINER,
        "image": pod.recipe.image,
        "imagePullPolicy": settings.sandbox_image_pull_policy,
        "env": _environment(pod),
        "ports": [{"name": "exec", "containerPort": names.EXEC_PORT}],
        "resources": {"requests": requests, "limits": limits},
        "securityContext": _privileges(pod.environment.spec.isolation),
        "volumeMounts": mounts,
    }


def _environment(pod: SandboxPod) -> list[JSON]:
    found: list[JSON] = [
        {"name": "CLOISTER_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    ]
    if pod.recipe.ipv6:
        found.append({"name": "CLOISTER_IPV6", "value": "true"})
    if pod.session and pod.session.resumed:
        found.append({"name": "CLOISTER_KEPT_ROOTS", "value": ":".join(KEPT)})
    return found


def _writable(pod: SandboxPod) -> list[JSON]:
    if not pod.claim:
        workspace: JSON = {"name": names.WORKSPACE_VOLUME, "mountPath": "/workspace"}
        return [workspace, *_mounts("scratch", _OF_THE_POD | _OF_THE_SESSION)]
    # The workspace is not the volume's top: many file systems have a lost+found there.
    kept = _mounts(names.WORKSPACE_VOLUME, _WORKSPACE | _OF_THE_SESSION)
    return [*kept, *_mounts("scratch", _OF_THE_POD)]


def _mounts(volume: str, paths: Mapping[str, str]) -> list[JSON]:
    return [{"name": volume, "mountPath": path, "subPath": sub} for sub, path in paths.items()]


def _workspace(pod: SandboxPod) -> JSON:
    if pod.claim:
        return {"persistentVolumeClaim": {"claimName": pod.claim}}
    return {"emptyDir": {"sizeLimit": str(pod.environment.spec.workspace.size)}}


def _volumes(pod: SandboxPod, settings: Settings) -> list[JSON]:
    spec = pod.environment.spec
    recipe = names.recipe_secret(pod.environment.metadata.name, pod.recipe.hash)
    volumes: list[JSON] = [
        {"name": names.WORKSPACE_VOLUME, **_workspace(pod)},
        {
            "name": "scratch",
            "emptyDir": {"sizeLimit": str(spec.resources.disk or settings.default_disk)},
        },
        {"name": "state", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {
            "name": names.IDENTITY_VOLUME,
            "secret": {"secretName": pod.identity or pod.name, "defaultMode": 0o440},
        },
        {"name": "recipe", "secret": {"secretName": recipe, "defaultMode": 0o440}},
    ]
    if pod.recipe.mounts:
        items = [
            {"key": each.key, "path": each.key, "mode": each.mode} for each in pod.recipe.mounts
        ]
        volumes.append({"name": "files", "secret": {"secretName": recipe, "items": items}})
    return volumes


def _schedule(spec: JSON, pod: SandboxPod) -> None:
    wanted = pod.environment.spec.scheduling
    if wanted.node_selector:
        spec["nodeSelector"] = wanted.node_selector
    if wanted.tolerations:
        spec["tolerations"] = wanted.tolerations
    if wanted.priority_class_name:
        spec["priorityClassName"] = wanted.priority_class_name
    if wanted.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": each.name} for each in wanted.image_pull_secrets]


def pod_reference(pod: PodView) -> JSON:
    """For objects that go with this pod."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": pod.name,
        "uid": pod.uid,
        "controller": True,
    }


def workspace_claim(
    environment: EnvironmentObject, name: str, owner: JSON, session_uid: str = ""
) -> JSON:
    """The PersistentVolumeClaim of a workspace that outlives its pods."""
    workspace, metadata = environment.spec.workspace, environment.metadata
    labels = {
        names.MANAGED_BY_LABEL: names.MANAGED_BY,
        names.ENVIRONMENT_LABEL: metadata.name,
    }
    if session_uid:
        labels[names.SESSION_LABEL] = session_uid
    spec: JSON = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(workspace.size)}},
    }
    if workspace.storage_class_name:
        spec["storageClassName"] = workspace.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": metadata.namespace,
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": spec,
    }
