"""Asks the first pod of an image where its package managers get their packages."""

import logging

from .. import names
from ..api.environment import EnvironmentObject, EnvironmentSpec, PackageManagers, Pool
from ..cache import Key
from ..errors import TransientError
from ..plan import packages
from ..plan.packages import Packages
from ..recipe import Recipe
from .context import Context, address

log = logging.getLogger(__name__)


class PackageHosts:
    """What images said, for one process; an Environment's status keeps it over a restart."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._known: dict[Key, PackageManagers] = {}
        """By namespace and image, of those that Environments named when one was asked last. A pod
        with little CPU or memory tells only a part: that is its own namespace's affair.
        """

    def said(self, environment: EnvironmentObject) -> PackageManagers | None:
        """What the Environment's image said, if it was asked."""
        key = self._key(environment)
        before = environment.status.package_managers
        return before if before and before.image == key[1] else self._known.get(key)

    def unknown(self, environment: EnvironmentObject) -> bool:
        """Whether the image has to be asked before there can be a recipe."""
        networking = environment.spec.networking
        asks = networking.type == "limited" and networking.allow_package_managers
        return asks and packages.must_ask(self._context.settings) and self.said(environment) is None

    def of(self, environment: EnvironmentObject) -> Packages:
        """What the Environment's sandboxes are given for their package managers."""
        return packages.packages(self._context.settings, self.said(environment))

    async def ask(self, asked: EnvironmentObject, recipe: Recipe) -> bool:
        """Ask a warm pod of the recipe, if there is one; whether the answer is known now."""
        context = self._context
        group = ("state", *asked.key, recipe.hash, names.STATE_WARM)
        for pod in context.pods.group(group):
            if not pod.alive or pod.uid not in context.usable:
                continue
            try:
                answers = await context.dialer.package_sources(address(pod))
            except TransientError as error:
                log.info("pod %s: asking again: %s", pod.name, error)
                continue
            found = packages.read(recipe.image, answers)
            named = {self._key(each) for each in context.environments.all()}
            known = {key: said for key, said in self._known.items() if key in named}
            self._known = known | {(pod.namespace, recipe.image): found}
            managers = ", ".join(each.manager for each in found.sources) or "no package manager"
            log.info("image %s tells the sources of %s", recipe.image, managers)
            return True
        return False

    def _key(self, environment: EnvironmentObject) -> Key:
        image = environment.spec.image or self._context.settings.sandbox_image
        return environment.metadata.namespace, image


def bare(environment: EnvironmentObject) -> EnvironmentObject:
    """The same Environment as one pod of its image, in which nothing of its author's has run: what
    is asked of it must be the image's word.
    """
    spec = environment.spec
    made = EnvironmentSpec(
        image=spec.image,
        resources=spec.resources,
        scheduling=spec.scheduling,
        isolation=spec.isolation,
        pool=Pool(size=1),
    )
    return environment.model_copy(update={"spec": made})
