"""What the platform lets Environments say about nodes, devices and priority."""

import fnmatch
from collections.abc import Iterator, Sequence

from ..api import conditions
from ..api.environment import EnvironmentSpec
from ..errors import PermanentError
from ..settings import Settings


def check(spec: EnvironmentSpec, settings: Settings) -> None:
    """Raise PermanentError, naming the field, for what the platform does not allow.

    A toleration takes sandboxes to nodes that others are kept off, such as those of the control
    plane; what gives out a device is code of the node's; and a priority ends pods of others.
    """
    for field, name, what, globs in _wanted(spec, settings):
        if not any(fnmatch.fnmatchcase(name, each) for each in globs):
            allowed = ", ".join(globs) or "none"
            raise PermanentError(
                conditions.POLICY_REFUSED,
                f"the platform allows these {what}: {allowed}; not {name or 'all of them'}",
                field,
            )


def _wanted(
    spec: EnvironmentSpec, settings: Settings
) -> Iterator[tuple[str, str, str, Sequence[str]]]:
    """Field, name, what it is a name of, and the globs that allow it."""
    scheduling = spec.scheduling
    for at, each in enumerate(scheduling.tolerations):
        # Without a key it is every taint, which only `*` allows.
        field = f"spec.scheduling.tolerations[{at}]"
        yield field, each.get("key") or "", "taints", settings.allowed_tolerations
    for label in scheduling.node_selector:
        field = "spec.scheduling.nodeSelector"
        yield field, label, "labels of nodes", settings.allowed_node_labels
    if name := scheduling.priority_class_name:
        field = "spec.scheduling.priorityClassName"
        yield field, name, "priority classes", settings.allowed_priority_classes
    for resource in spec.resources.extended:
        field = "spec.resources.extended"
        yield field, resource, "extended resources", settings.allowed_extended_resources
