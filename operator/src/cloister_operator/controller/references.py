"""Reads the Secrets and ConfigMaps that specs name."""

from collections.abc import Iterable

from ..api.common import JSON
from ..cluster.api import Api
from ..cluster.resources import CONFIG_MAPS, SECRETS
from ..errors import NotFoundError
from ..recipe import Reference, value_of

_RESOURCES = {"ConfigMap": CONFIG_MAPS, "Secret": SECRETS}


async def read(api: Api, namespace: str, references: Iterable[Reference]) -> dict[str, bytes]:
    """What each reference stands for, by its field; each object is read once.

    Raises PermanentError that names the field, TransientError.
    """
    objects: dict[tuple[str, str], JSON | None] = {}
    values = {}
    for reference in references:
        key = (reference.kind, reference.name)
        if key not in objects:
            try:
                objects[key] = await api.get(_RESOURCES[reference.kind], namespace, reference.name)
            except NotFoundError:
                objects[key] = None
        values[reference.field] = value_of(reference, objects[key])
    return values
