"""The Secrets that carry recipes: one for each version of an Environment that pods are made of."""

from .. import manifests, names
from ..api.environment import EnvironmentObject
from ..cluster.resources import ENVIRONMENTS
from ..errors import ConflictError
from ..recipe import Recipe
from . import owned
from .context import Context


async def make(context: Context, environment: EnvironmentObject, recipe: Recipe) -> None:
    """Make the recipe's Secret; that it is there already is fine.

    Its hash is written into the status first. Secrets may not be listed, so one that an operator
    made right before it was killed would otherwise be known to nobody.
    """
    known = _known(context, environment)
    if recipe.hash not in environment.status.recipes:
        await _note(context, environment, known | {recipe.hash})
    body = manifests.recipe_secret(environment, recipe)
    # Most are there already: asking for those costs the API server less than refusing a write.
    write = owned.ensure if recipe.hash in known else owned.create
    await write(context.api, environment.metadata.namespace, body)


async def drop_old(context: Context, environment: EnvironmentObject, current: Recipe) -> None:
    """Delete the Secrets of recipes that no pod mounts any more."""
    namespace, name = environment.key
    # Newer than the caller's, if `make` has just noted something.
    newest = context.environments.get(namespace, name)
    if newest is None or newest.metadata.uid != environment.metadata.uid:
        return
    noted = set(newest.status.recipes)
    gone = {
        each
        for each in noted - {current.hash}
        if not context.pods.group(("recipe", namespace, name, each))
    }
    for each in sorted(gone):
        secret = names.recipe_secret(name, each)
        await owned.remove(context.api, namespace, secret, environment.metadata.uid)
    if gone:
        await _note(context, newest, noted - gone)


def _known(context: Context, environment: EnvironmentObject) -> set[str]:
    status = environment.status
    if status.recipes:
        return set(status.recipes)
    # Of an operator that noted nothing.
    present = context.pods.group(("environment", *environment.key))
    return {pod.recipe for pod in present} | ({status.recipe_hash or ""} - {""})


async def _note(context: Context, environment: EnvironmentObject, recipes: set[str]) -> None:
    """Write whose Secrets there may be, unless somebody else has written meanwhile."""
    namespace, name = environment.key
    version = environment.metadata.resource_version
    try:
        answer = await context.api.patch_status(
            ENVIRONMENTS, namespace, name, {"recipes": sorted(recipes)}, version
        )
    except ConflictError:
        # The next attempt must not begin with the old state again.
        context.environments.put(await context.api.get(ENVIRONMENTS, namespace, name))
        raise
    context.environments.put(answer)
