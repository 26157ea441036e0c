"""An Environment's recipe: its references resolved, its files packed, its hash."""

import base64
import fnmatch
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from . import names
from .api import conditions
from .api.common import JSON, EnvVar, FileSpec, GitSource, KeyRef, quantity
from .api.environment import EnvironmentObject, EnvironmentSpec
from .api.pod import GitTree
from .errors import PermanentError
from .plan import placement, proxies
from .plan.egress import Aliases, Reach, by_name, reach
from .plan.packages import Packages
from .settings import Settings

SETUP_TIMEOUT_SECONDS = 600
MAX_PAYLOAD_BYTES = 900_000
"""A Secret holds 1 MiB; the rest is for recipe.json."""


@dataclass(frozen=True)
class Reference:
    """A key of a Secret or ConfigMap that a spec names, and where it names it."""

    kind: str
    name: str
    key: str
    field: str


@dataclass(frozen=True)
class Mount:
    """A read-only file: the payload key, where it is mounted, its permissions."""

    key: str
    path: str
    mode: int


@dataclass(frozen=True)
class Around:
    """What an Environment is resolved in, beside its own spec and the settings."""

    gateway: str = ""
    """host:port of the egress gateways; empty where there are none."""
    packages: Packages = field(default_factory=Packages)
    """For Environments that allow package managers."""
    commits: Mapping[int, str] = field(default_factory=dict)
    """What was found in the git repositories, by the place of their file in the spec."""


@dataclass(frozen=True)
class Recipe:
    """All that a new pod of an Environment needs, resolved."""

    hash: str
    image: str
    mounts: tuple[Mount, ...]
    payload: Mapping[str, bytes] = field(repr=False)
    """The recipe Secret's data: recipe.json and the files."""
    reach: Reach = field(default_factory=Reach)
    """What its pods may reach."""
    trees: tuple[GitTree, ...] = ()
    """Repositories that the operator gives its pods before they are warm."""
    ipv6: bool = False
    """Whether its pods' tools get IPv6 sockets."""
    aliases: Aliases | None = None
    """Names for its pods' /etc/hosts."""


def references(
    files: Iterable[FileSpec], env: Iterable[EnvVar], prefix: str = "spec"
) -> list[Reference]:
    """The Secrets and ConfigMaps that files and variables name."""
    found = []

    def add(kind: str, ref: KeyRef | None, where: str) -> None:
        if ref:
            found.append(Reference(kind, ref.name, ref.key, where))

    for index, file in enumerate(files):
        add("ConfigMap", file.config_map_key_ref, f"{prefix}.files[{index}].configMapKeyRef")
        add("Secret", file.secret_key_ref, f"{prefix}.files[{index}].secretKeyRef")
    for index, variable in enumerate(env):
        add("Secret", variable.secret_key_ref, f"{prefix}.env[{index}].secretKeyRef")
    return found


def value_of(reference: Reference, found: JSON | None) -> bytes:
    """What the reference stands for, given the object it names (None: it does not exist).

    Raises PermanentError when the object or its key is missing, or when the platform has not
    labelled it for use in sandboxes.
    """
    what = f"{reference.kind} {reference.name}"
    if found is None:
        raise PermanentError(
            conditions.REFERENCE_NOT_FOUND,
            f"{what} does not exist in this namespace; create it",
            reference.field,
        )
    labels = found.get("metadata", {}).get("labels") or {}
    if labels.get(names.ALLOW_LABEL) != "true":
        raise PermanentError(
            conditions.REFERENCE_REFUSED,
            f"{what} is not for sandboxes: the platform allows it with the label "
            f"{names.ALLOW_LABEL}=true",
            reference.field,
        )
    data = found.get("data") or {}
    binary = found.get("binaryData") or {}
    if reference.key in data:
        text = data[reference.key]
        return base64.b64decode(text) if reference.kind == "Secret" else text.encode()
    if reference.key in binary:
        return base64.b64decode(binary[reference.key])
    raise PermanentError(
        conditions.REFERENCE_NOT_FOUND,
        f"{what} has no key {reference.key}",
        reference.field,
    )


def content_of(file: FileSpec, index: int, values: Mapping[str, bytes]) -> bytes:
    """A file's bytes; `values` are the resolved references by field."""
    if file.content is not None:
        return file.content.encode()
    for source in ("configMapKeyRef", "secretKeyRef"):
        found = values.get(f"spec.files[{index}].{source}")
        if found is not None:
            return found
    raise PermanentError(conditions.INVALID_SPEC, "a file needs a source", f"spec.files[{index}]")


def tree_of(file: FileSpec, git: GitSource, index: int, commits: Mapping[int, str]) -> GitTree:
    """A repository as pods get it; raises PermanentError that names the field."""
    where = f"spec.files[{index}]"
    if file.read_only:
        raise PermanentError(
            conditions.INVALID_SPEC,
            "what comes from git is a copy that tools may change: set readOnly to false",
            f"{where}.readOnly",
        )
    commit = commits.get(index)
    if commit is None:
        raise PermanentError(
            conditions.FETCHING_GIT, "the repository was not fetched yet", f"{where}.git"
        )
    return GitTree(file.path, git.url, commit)


def variables(env: Iterable[EnvVar], values: Mapping[str, bytes]) -> dict[str, str]:
    """Variables by name; `values` are the resolved references by field.

    Raises PermanentError that names the field of a value that no process can have.
    """
    found = {}
    for index, variable in enumerate(env):
        where = f"spec.env[{index}].secretKeyRef"
        if where in values:
            try:
                found[variable.name] = values[where].decode()
            except UnicodeDecodeError:
                raise PermanentError(
                    conditions.INVALID_SPEC, "a variable's value must be UTF-8 text", where
                ) from None
        else:
            where = f"spec.env[{index}].value"
            found[variable.name] = variable.value or ""
        if "\0" in found[variable.name]:
            raise PermanentError(
                conditions.INVALID_SPEC,
                "a variable's value must not contain a NUL character",
                where,
            )
    return found


def check_policy(spec: EnvironmentSpec, settings: Settings) -> None:
    """Refuse what the platform does not allow; raises PermanentError that names the field."""
    placement.check(spec, settings)
    allowed = settings.allowed_images
    if spec.image and allowed and not any(fnmatch.fnmatch(spec.image, each) for each in allowed):
        raise PermanentError(
            conditions.POLICY_REFUSED,
            f"the platform allows only images like {', '.join(allowed)}",
            "spec.image",
        )
    profile = spec.isolation.profile
    if profile not in settings.allowed_profiles:
        known = ", ".join(settings.allowed_profiles) or "none"
        raise PermanentError(
            conditions.POLICY_REFUSED,
            f"the platform allows these profiles: {known}",
            "spec.isolation.profile",
        )
    if spec.networking.type == "unrestricted" and not settings.egress_unrestricted:
        raise PermanentError(
            conditions.POLICY_REFUSED,
            "the platform allows no unrestricted networking; name the hosts in allowedHosts",
            "spec.networking.type",
        )
    runtime = spec.isolation.runtime_class_name
    if runtime and runtime not in settings.allowed_runtime_classes:
        known = ", ".join(settings.allowed_runtime_classes) or "none"
        raise PermanentError(
            conditions.POLICY_REFUSED,
            f"the platform allows these runtime classes: {known}",
            "spec.isolation.runtimeClassName",
        )
    kernel_of_its_own = runtime in settings.runtime_classes_without_user_namespaces
    if profile == "rootish" and not settings.user_namespaces(runtime) and not kernel_of_its_own:
        raise PermanentError(
            conditions.POLICY_REFUSED,
            "root in a sandbox needs a user namespace, which the platform has turned off: it would "
            "be root on the node, should it ever get out",
            "spec.isolation.profile",
        )


def build(
    environment: EnvironmentObject,
    values: Mapping[str, bytes],
    settings: Settings,
    around: Around | None = None,
) -> Recipe:
    """Resolve an Environment; raises PermanentError that names the field."""
    spec, around = environment.spec, around or Around()
    check_policy(spec, settings)
    allowed = reach(spec.networking, around.packages.hosts, settings.cluster_domain)
    managers = allowed.network == names.NETWORK_NONE and spec.networking.allow_package_managers
    if (allowed.network == names.NETWORK_GATEWAY or managers) and not around.gateway:
        raise PermanentError(
            conditions.EGRESS_GATEWAY_MISSING,
            "hosts are allowed, and there is no egress gateway to reach them through; the platform "
            "installs it with egress.gateway.enabled in the chart's values",
            "spec.networking",
        )
    files: dict[str, bytes] = {}
    copies: list[JSON] = []
    mounts: list[Mount] = []
    trees: list[GitTree] = []
    for index, file in enumerate(spec.files):
        if file.git:
            trees.append(tree_of(file, file.git, index, around.commits))
            continue
        key = f"f{index}"
        files[key] = content_of(file, index, values)
        if file.read_only:
            mounts.append(Mount(key, file.path, file.permissions))
        else:
            copies.append({"source": key, "path": file.path, "mode": file.permissions})
    if sum(map(len, files.values())) > MAX_PAYLOAD_BYTES:
        raise PermanentError(
            conditions.INVALID_SPEC,
            f"all files together are larger than {MAX_PAYLOAD_BYTES} bytes",
            "spec.files",
        )
    env = variables(spec.env, values)
    if allowed.network == names.NETWORK_GATEWAY:
        tools = around.packages.variables if spec.networking.allow_package_managers else {}
        # A tool's setting may be the Environment's own; a way past the gateway leads nowhere.
        env = {**proxies.of_tools(around.gateway), **tools, **env, **proxies.of_all(around.gateway)}
        if proxies.APT_PATH not in {each.path for each in spec.files}:
            files[proxies.APT_KEY] = proxies.of_apt(around.gateway)
            mounts.append(Mount(proxies.APT_KEY, proxies.APT_PATH, 0o444))
    recipe = {
        "env": env,
        "setup": spec.setup,
        "setupTimeoutSeconds": SETUP_TIMEOUT_SECONDS,
        "copies": copies,
        "limits": limits(spec, settings),
    }
    if trees:
        recipe["trees"] = [{"path": each.path, "commit": each.commit} for each in trees]
    payload = {"recipe.json": json.dumps(recipe, sort_keys=True).encode(), **files}
    image = spec.image or settings.sandbox_image
    aliases = by_name(allowed, around.gateway) if settings.egress_by_name else None
    digest = _hash(spec, image, payload, settings, allowed, aliases)
    # Where pods have no IPv6 address, the link-local ones lead past policies and nowhere else.
    ipv6 = allowed.network != names.NETWORK_NONE and ":" in settings.pod_ip
    return Recipe(digest, image, tuple(mounts), payload, allowed, tuple(trees), ipv6, aliases)


def limits(spec: EnvironmentSpec, settings: Settings) -> dict[str, int]:
    """What the exec server bounds for itself and all that it starts: `fileBytes`, the largest file,
    and `processes`, which are counted for the sandbox alone only in a user namespace of its own.

    Raises PermanentError that names the field.
    """
    disk = quantity(spec.resources.disk or settings.default_disk, "spec.resources.disk")
    found = {"fileBytes": max(disk, quantity(spec.workspace.size, "spec.workspace.size"))}
    if settings.max_processes and settings.user_namespaces(spec.isolation.runtime_class_name):
        found["processes"] = settings.max_processes
    return found


def _hash(
    spec: EnvironmentSpec,
    image: str,
    payload: Mapping[str, bytes],
    settings: Settings,
    allowed: Reach,
    aliases: Aliases | None,
) -> str:
    """Ten hex digits that change with all that makes a new pod differ from an old one.

    The pool's size and the lifecycle are left out: they change nothing in a pod.
    """
    # Of the networking counts what comes of it.
    left_out = {"pool", "lifecycle", "files", "env", "setup", "image", "networking"}
    shape = spec.model_dump(mode="json", by_alias=True, exclude=left_out)
    paths = [[each.path, each.permissions, each.read_only] for each in spec.files]
    defaults = [
        settings.default_cpu,
        settings.default_memory,
        settings.default_disk,
        settings.user_namespaces(spec.isolation.runtime_class_name),
        allowed.network,
        allowed.hosts,
        settings.egress_nameservers if allowed.network == names.NETWORK_UNRESTRICTED else (),
    ]
    # The address is of the proxy, too, which is in the payload.
    known = [shape, image, paths, defaults, *([aliases.hosts] if aliases else [])]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for key in sorted(payload):
        digest.update(hashlib.sha256(payload[key]).digest())
    return digest.hexdigest()[:10]
