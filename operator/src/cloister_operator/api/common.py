"""What specs of Environments and Sessions share."""

import re
from datetime import timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from ..errors import PermanentError

JSON = dict[str, Any]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_QUANTITY = re.compile(
    r"(?P<number>\d+(?:\.\d*)?|\.\d+)(?:[eE](?P<exponent>[+-]?\d{1,2})|(?P<suffix>[KMGTPE]i|[numkMGTPE]))?"
)
_FACTORS = {
    "": "1",
    **{name: f"1e{3 * index}" for index, name in enumerate("kMGTPE", start=1)},
    **{f"{name}i": str(1024**index) for index, name in enumerate("KMGTPE", start=1)},
    **{name: f"1e-{3 * index}" for index, name in enumerate("mun", start=1)},
}
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Model(BaseModel):
    """camelCase outside, snake_case inside. The API server has validated what comes in: unknown
    fields are those of a newer schema and are ignored here. Errors are logged, and quote no values.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, hide_input_in_errors=True
    )


def duration(text: str, field: str) -> timedelta:
    """A Go-style duration such as `30m` or `1h30m`; raises PermanentError that names the field."""
    if not text or _DURATION.sub("", text):
        raise PermanentError("InvalidSpec", f"{text!r} is not a duration such as 30m", field)
    return timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(text)))


def quantity(given: str | int, field: str) -> int:
    """A quantity such as `512Mi` or `1.5G` in whole bytes; raises PermanentError that names the
    field.
    """
    found = _QUANTITY.fullmatch(str(given))
    if found is None:
        raise PermanentError("InvalidSpec", f"{given!r} is not a quantity such as 512Mi", field)
    exponent = found["exponent"]
    factor = Decimal(10) ** int(exponent) if exponent else Decimal(_FACTORS[found["suffix"] or ""])
    return int((Decimal(found["number"]) * factor).to_integral_value(ROUND_CEILING))


class KeyRef(Model):
    """A key of a Secret or ConfigMap in the same namespace."""

    name: str
    key: str


class SecretRef(Model):
    """A Secret in the same namespace."""

    name: str


class GitSource(Model):
    """A git repository, of which the operator fetches one commit."""

    url: str
    ref: str | None = None
    secret_ref: SecretRef | None = None


class FileSpec(Model):
    """A file in the sandbox, with one source."""

    path: str
    mode: str | None = None
    read_only: bool = True
    content: str | None = None
    config_map_key_ref: KeyRef | None = None
    secret_key_ref: KeyRef | None = None
    git: GitSource | None = None

    @property
    def permissions(self) -> int:
        """The mode as a number; 0444 for mounted files, 0644 for copied ones by default."""
        return int(self.mode, 8) if self.mode else (0o444 if self.read_only else 0o644)


class EnvVar(Model):
    """A variable for tools."""

    name: str
    value: str | None = None
    secret_key_ref: KeyRef | None = None


class ObjectMeta(Model):
    """What the operator reads of an object's metadata."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = "0"
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class Condition(Model):
    """A condition by the Kubernetes API conventions."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: str
    observed_generation: int = 0
