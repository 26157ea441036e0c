"""The Environment: a reusable recipe for sandboxes."""

from typing import Any, Literal

from pydantic import Field

from .. import names
from .common import JSON, Condition, EnvVar, FileSpec, Model, ObjectMeta, SecretRef


class Packages(Model):
    """Packages by manager, in each manager's own pin syntax."""

    apt: list[str] = Field(default_factory=list)
    cargo: list[str] = Field(default_factory=list)
    gem: list[str] = Field(default_factory=list)
    go: list[str] = Field(default_factory=list)
    npm: list[str] = Field(default_factory=list)
    pip: list[str] = Field(default_factory=list)


class Networking(Model):
    """What sandboxes may reach."""

    type: Literal["limited", "unrestricted"] = "limited"
    allowed_hosts: list[str] = Field(default_factory=list)
    allow_package_managers: bool = False
    mcp_servers: list[str] = Field(default_factory=list)
    allow_mcp_servers: bool = False


class Resources(Model):
    """Limits of a sandbox; what is absent comes from the chart's defaults."""

    cpu: str | int | None = None
    memory: str | int | None = None
    disk: str | int | None = None
    extended: dict[str, str | int] = Field(default_factory=dict)


class Scheduling(Model):
    """Where sandboxes run."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, Any]] = Field(default_factory=list)
    priority_class_name: str | None = None
    image_pull_secrets: list[SecretRef] = Field(default_factory=list)


class Workspace(Model):
    """The volume at /workspace."""

    size: str | int = "1Gi"
    storage_class_name: str | None = None
    persistent: bool = False


class Isolation(Model):
    """How strictly a sandbox is held."""

    profile: Literal["strict", "rootish"] = "strict"
    runtime_class_name: str | None = None


class Pool(Model):
    """How many pods are kept warm, and how many sessions there may be."""

    size: int = 1
    max_size: int | None = None
    """What it may grow to while sessions come fast; it never grows without."""
    max_sessions: int | None = None


class Lifecycle(Model):
    """When sessions end."""

    idle_timeout: str = "30m"
    on_idle: Literal["Suspend", "Terminate"] = "Terminate"
    max_lifetime: str = "24h"


class EnvironmentSpec(Model):
    """The spec, as the custom resource's schema has it."""

    image: str | None = None
    packages: Packages = Field(default_factory=Packages)
    networking: Networking = Field(default_factory=Networking)
    files: list[FileSpec] = Field(default_factory=list)
    env: list[EnvVar] = Field(default_factory=list)
    setup: str | None = None
    resources: Resources = Field(default_factory=Resources)
    scheduling: Scheduling = Field(default_factory=Scheduling)
    workspace: Workspace = Field(default_factory=Workspace)
    isolation: Isolation = Field(default_factory=Isolation)
    pool: Pool = Field(default_factory=Pool)
    lifecycle: Lifecycle = Field(default_factory=Lifecycle)


class PoolCounts(Model):
    """Pods of an Environment by what they do."""

    ready: int = 0
    starting: int = 0
    claimed: int = 0
    failed: int = 0
    wanted: int = 0
    """How many warm ones there are to be now."""


class PackageSource(Model):
    """Where a package manager of an image gets its packages."""

    manager: str
    urls: list[str] = Field(default_factory=list)


class PackageManagers(Model):
    """What the package managers of an image said when they were asked."""

    image: str
    sources: list[PackageSource] = Field(default_factory=list)


class GitCommit(Model):
    """What new pods get of a git repository."""

    path: str
    url: str
    ref: str | None = None
    commit: str


class EnvironmentStatus(Model):
    """The status, written by the operator only."""

    observed_generation: int = 0
    recipe_hash: str | None = None
    recipes: list[str] = Field(default_factory=list)
    """Hashes whose Secrets there may be: written before a Secret is made."""
    allowed_hosts: list[str] = Field(default_factory=list)
    """All that new pods may reach by name."""
    package_managers: PackageManagers | None = None
    """Where the image's package managers get their packages, if anybody asked."""
    git: list[GitCommit] = Field(default_factory=list)
    """What was found in the repositories among the files."""
    pool: PoolCounts = Field(default_factory=PoolCounts)
    conditions: list[Condition] = Field(default_factory=list)


class EnvironmentObject(Model):
    """An Environment as the API server has it."""

    metadata: ObjectMeta
    spec: EnvironmentSpec = Field(default_factory=EnvironmentSpec)
    status: EnvironmentStatus = Field(default_factory=EnvironmentStatus)

    @classmethod
    def parse(cls, raw: JSON) -> "EnvironmentObject":
        """Read an object; raises pydantic.ValidationError."""
        return cls.model_validate(raw)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    def owner_reference(self) -> JSON:
        """For objects that go with this one."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.ENVIRONMENT_KIND,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
            "controller": True,
        }
