"""The operator's settings: read once, from CLOISTER_* environment variables that the chart sets."""

import ipaddress
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator


class SettingsError(Exception):
    """A setting is missing or wrong; the message names its variable."""


class Settings(BaseModel):
    """What the platform decided; field names are the variables' names without CLOISTER_."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str
    """The operator's own namespace."""
    pod_ip: str
    """The operator's own address: sandboxes try to reach it when enforcement is proven."""
    pod_name: str = ""
    """The operator's own pod, by which the Lease names it; empty where it runs in none."""
    service: str = "cloister"
    """The Service in front of the Sessions API."""
    sandbox_namespaces: tuple[str, ...] = ()
    """Namespaces whose sandboxes this operator runs; each must also carry the label."""
    sandbox_image: str
    sandbox_image_pull_policy: str = "IfNotPresent"
    sandbox_user_namespaces: bool = True
    allowed_images: tuple[str, ...] = ()
    """Globs of images that Environments may name; empty allows any."""
    allowed_runtime_classes: tuple[str, ...] = ()
    """Runtime classes that Environments may name."""
    runtime_classes_without_user_namespaces: tuple[str, ...] = ()
    """Those of them whose runtime refuses pods with a user namespace, as gVisor does."""
    allowed_tolerations: tuple[str, ...] = ()
    """Globs of keys of taints that Environments may tolerate; all of them at once takes `*`."""
    allowed_node_labels: tuple[str, ...] = ("*",)
    """Globs of keys of labels by which Environments may choose nodes."""
    allowed_priority_classes: tuple[str, ...] = ()
    """Globs of priority classes that Environments may name."""
    allowed_extended_resources: tuple[str, ...] = ()
    """Globs of extended resources that Environments may have."""
    worker_namespaces: tuple[str, ...] = ()
    """Namespaces whose pods may reach exec servers."""
    default_cpu: str = "1"
    default_memory: str = "1Gi"
    default_disk: str = "2Gi"
    copied_labels: tuple[str, ...] = ()
    """Label keys that are copied from Environments and Sessions to pods."""
    create_rate: float = Field(default=100, ge=0)
    """Creations of sessions a second that each caller may ask for; 0 is any number."""
    create_burst: int = Field(default=300, ge=1)
    """The same, at once after a rest."""
    call_rate: float = Field(default=200, ge=0)
    """Other calls of the Sessions API a second by each caller; 0 is any number."""
    call_burst: int = Field(default=400, ge=1)
    max_sessions_per_namespace: int = Field(default=0, ge=0)
    """Sessions that have a pod, or wait for one, in a namespace; 0 is any number."""
    max_pool_size: int = Field(default=1000, ge=0)
    """Warm pods of one Environment at most, whatever it asks for."""
    max_refill_rate: float = Field(default=50, gt=0)
    """Pods a second that are made for all pools together; those of sessions come on top."""
    cluster_domain: str = "cluster.local"
    """The domain of the cluster's own names, none of which an Environment may allow."""
    allowed_profiles: tuple[str, ...] = ("strict", "rootish")
    """Profiles that Environments may name."""
    max_processes: int = Field(default=4096, ge=0)
    """Processes and threads of a sandbox, where they can be counted for it alone; 0 is no limit."""
    egress_extra_ranges: tuple[str, ...] = ()
    """Address ranges beside the cluster's own that sandboxes and gateways must not reach."""
    egress_unrestricted: bool = True
    """Whether Environments may have networking of type unrestricted."""
    egress_smtp: bool = False
    """Whether unrestricted sandboxes may reach TCP port 25."""
    egress_nameservers: tuple[str, ...] = ("1.1.1.1", "8.8.8.8")
    """Public DNS servers of unrestricted sandboxes."""
    egress_package_hosts: tuple[str, ...] = ()
    """Hosts of package managers for every image; empty: each image's own tools are asked."""
    egress_mirrors: dict[str, str] = Field(default_factory=dict)
    """URLs of mirrors by package manager (pip, npm, go); their hosts take the place of others."""
    proof_interval: float = Field(default=3600, gt=0)
    """Seconds between two proofs that the network is closed."""
    proof_skip: tuple[str, ...] = ()
    """Kinds of targets that are left out of it: node, where a cluster lets pods reach their own."""
    admission_policies: bool = False
    """Whether the chart installed policies that guard the sandbox namespaces."""
    admission_required: bool = False
    """Whether no session is given in a namespace where they have no effect."""
    ca_overlap_seconds: float = Field(default=7200, gt=0)
    """How long a new CA is trusted before it signs."""
    egress_gateway: bool = False
    """Whether egress gateways are installed beside the operator."""
    egress_by_name: bool = False
    """Whether they serve tools that know of no proxy, whom sandboxes' /etc/hosts lead to them."""
    git_allowed_hosts: tuple[str, ...] = ()
    """Globs of host, or host:port, from which repositories are fetched; empty: from none."""
    git_private_ranges: tuple[str, ...] = ()
    """Ranges of private addresses in which git servers may be."""
    git_ca_bundle: str = ""
    """CAs that git servers may show beside those of the system, PEM."""
    git_refresh_seconds: float = Field(default=300, ge=30)
    """After this a branch or tag is looked at again."""
    git_cache: str = "/var/cache/cloister-git"
    """The directory for what was fetched."""
    ended_session_ttl_seconds: float = Field(default=3600, ge=0)
    log_level: str = "INFO"
    log_format: Literal["json", "text"] = "json"

    @field_validator(
        "sandbox_namespaces",
        "allowed_images",
        "allowed_runtime_classes",
        "runtime_classes_without_user_namespaces",
        "allowed_tolerations",
        "allowed_node_labels",
        "allowed_priority_classes",
        "allowed_extended_resources",
        "worker_namespaces",
        "copied_labels",
        "allowed_profiles",
        "egress_extra_ranges",
        "egress_nameservers",
        "egress_package_hosts",
        "proof_skip",
        "git_allowed_hosts",
        "git_private_ranges",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("egress_mirrors", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        if isinstance(value, str):
            parts = (part.partition("=") for part in value.split(",") if part.strip())
            return {name.strip(): url.strip() for name, _, url in parts}
        return value

    @field_validator("egress_mirrors")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for name, url in value.items():
            if name not in ("pip", "npm", "go"):
                raise ValueError(f"{name!r} is none of pip, npm and go")
            if not url.startswith("https://"):
                raise ValueError(f"the mirror of {name} must be an https URL")
        return value

    @field_validator("egress_extra_ranges", "git_private_ranges")
    @classmethod
    def _ranges(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            ipaddress.ip_network(each)
        return value

    @field_validator("egress_nameservers")
    @classmethod
    def _addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            ipaddress.ip_address(each)
        return value

    def user_namespaces(self, runtime_class: str | None) -> bool:
        """Whether pods of a runtime class (None: the node's own runtime) get a user namespace."""
        refused = runtime_class in self.runtime_classes_without_user_namespaces
        return self.sandbox_user_namespaces and not refused

    @property
    def ended_session_ttl(self) -> timedelta:
        """How long an ended Session stays to be read."""
        return timedelta(seconds=self.ended_session_ttl_seconds)


def load(environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; raises SettingsError that names every wrong variable."""
    given = {
        name: environ[f"CLOISTER_{name.upper()}"]
        for name in Settings.model_fields
        if f"CLOISTER_{name.upper()}" in environ
    }
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(
            f"CLOISTER_{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors()
        )
        raise SettingsError(problems) from None
