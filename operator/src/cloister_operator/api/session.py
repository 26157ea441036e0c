"""The Session: one claimed pod, its life bounded by policy."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from .. import names
from .common import JSON, Condition, EnvVar, FileSpec, Model, ObjectMeta
from .conditions import HAS_PLACE, NO_PLACE, parse_time, precise


class Phase(StrEnum):
    """Where a Session is in its life."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    FAILED = "Failed"
    TERMINATED = "Terminated"

    @property
    def ended(self) -> bool:
        """Whether it will never run again."""
        return self in (Phase.FAILED, Phase.TERMINATED)


class SessionLifecycle(Model):
    """Limits of this session; only shorter than the Environment's."""

    idle_timeout: str | None = None
    max_lifetime: str | None = None


class SessionSpec(Model):
    """The spec, as the custom resource's schema has it."""

    environment_name: str
    files: list[FileSpec] = Field(default_factory=list)
    env: list[EnvVar] = Field(default_factory=list)
    state: Literal["Running", "Suspended"] = "Running"
    lifecycle: SessionLifecycle = Field(default_factory=SessionLifecycle)


class SessionStatus(Model):
    """The status, written by the operator only."""

    observed_generation: int = 0
    phase: Phase = Phase.PENDING
    reason: str | None = None
    queue_position: int | None = None
    """Its number in line while it waits for another session's end; the first is 1."""
    conditions: list[Condition] = Field(default_factory=list)
    pod_name: str | None = None
    pod_uid: str | None = Field(default=None, alias="podUID")
    endpoint: str | None = None
    server_name: str | None = None
    credentials_secret_name: str | None = None
    workspace_claim: str | None = None
    """The PersistentVolumeClaim with the workspace, where it outlives its pods."""
    recipe_hash: str | None = None
    started_at: str | None = None
    """Its first start: its lifetime counts from here, suspended or not."""
    running_since: str | None = None
    """Its present pod's start; absent while it has none."""
    suspended_at: str | None = None
    failed_at: str | None = None
    """When it last lost a pod."""
    recoveries: int = 0
    """Pods lost one after the other, none of which lasted for long."""
    ended_at: str | None = None
    earlier_running_milliseconds: int = 0
    """Of the pods before the present one."""
    earlier_active_milliseconds: int = 0
    running_seconds: int = 0
    active_seconds: int = 0
    last_activity_time: str | None = None
    restarts: int = 0


@dataclass(frozen=True)
class FirstPod:
    """The warm pod that a Session was made for."""

    name: str
    uid: str
    at: datetime
    """When it was chosen; what is told at once as the session's start."""

    def __str__(self) -> str:
        return f"{self.name}/{self.uid}/{precise(self.at)}"

    @classmethod
    def parse(cls, text: str) -> "FirstPod | None":
        """Read an annotation; None for what nobody here wrote."""
        try:
            name, uid, at = text.split("/")
            when = parse_time(at)
        except ValueError:
            return None
        return cls(name, uid, when) if when.tzinfo else None


class SessionObject(Model):
    """A Session as the API server has it."""

    metadata: ObjectMeta
    spec: SessionSpec
    status: SessionStatus = Field(default_factory=SessionStatus)

    @classmethod
    def parse(cls, raw: JSON) -> "SessionObject":
        """Read an object; raises pydantic.ValidationError."""
        return cls.model_validate(raw)

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def environment_key(self) -> tuple[str, str]:
        """Namespace and name of its Environment."""
        return self.metadata.namespace, self.spec.environment_name

    @property
    def resumed(self) -> bool:
        """Whether its next pod finds the workspace of an earlier one."""
        return self.status.workspace_claim is not None and self.status.started_at is not None

    @property
    def through_api(self) -> bool:
        """Whether the Sessions API made it, and handed its credentials to the caller."""
        return self.metadata.annotations.get(names.ISSUED_BY) == names.ISSUED_BY_API

    @property
    def first_pod(self) -> FirstPod | None:
        """The pod that it was made for, until it ran, or until its status says that this one is
        not its pod.
        """
        given = self.metadata.annotations.get(names.FIRST_POD)
        if given is None or not self.through_api or self.status.started_at is not None:
            return None
        found = FirstPod.parse(given)
        return found if found and found.uid != self.status.pod_uid else None

    @property
    def in_line(self) -> bool:
        """Whether it waits for a place, or for whatever came after it was told so: the pod that it
        was made for is anybody's meanwhile, and nobody was told that it runs there.
        """
        # The reason alone is what an older operator wrote.
        return self.status.reason in NO_PLACE or any(
            each.type == HAS_PLACE and each.status == "False" for each in self.status.conditions
        )

    @property
    def suspended_when_idle(self) -> bool:
        """Whether it is to be suspended because it was idle, and not because somebody asked."""
        mark = self.metadata.annotations.get(names.IDLE)
        return self.spec.state == "Suspended" and mark == str(self.metadata.generation)

    def owner_reference(self) -> JSON:
        """For objects that go with this one."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.SESSION_KIND,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
            "controller": True,
        }
