"""Reconciles an Environment: policies first, then its recipe, its pool and its status."""

import asyncio
import logging

from .. import names
from ..api import conditions
from ..api.common import JSON
from ..api.conditions import Finding
from ..api.environment import EnvironmentObject, PoolCounts
from ..cache import Key
from ..cluster.resources import ENVIRONMENTS
from ..errors import NotFoundError, OperatorError, PermanentError, RefusedError, TransientError
from ..plan.admission import finding as admission_finding
from ..plan.failure import Failure
from ..plan.verdict import counts, findings, refused
from ..recipe import Around, Recipe, build, references
from . import pods, recipes
from .context import Context, Resolved
from .events import Recorder
from .grounds import RECHECKED_AFTER_SECONDS, Grounds
from .packages import PackageHosts, bare
from .pools import Pools
from .references import read
from .warmer import Warmer

log = logging.getLogger(__name__)

ASKING = "a first pod of its image is asked where its package managers get their packages"

ASKED_AGAIN_SECONDS = 5.0
"""After this a pod that did not tell is asked once more."""


class EnvironmentReconciler:
    """The reconcile function of Environments."""

    def __init__(self, context: Context, warmer: Warmer, recorder: Recorder) -> None:
        self._context = context
        self._warmer = warmer
        self._recorder = recorder
        self._pools = Pools(context)
        self._grounds = Grounds(context)
        self._packages = PackageHosts(context)
        self._resolved_at: dict[Key, float] = {}

    async def reconcile(self, namespace: str, name: str) -> float | None:
        """Move one Environment on; the answer is when to look again, in seconds."""
        await self._confirm(namespace, name)
        environment = self._context.environments.get(namespace, name)
        if environment is None or environment.metadata.deletion_timestamp:
            await self._remove(namespace, name)
            return None
        context, group = self._context, ("environment", namespace, name)
        for pod in context.pods.group(group):
            if pod.state != names.STATE_CLAIMED:
                self._warmer.ensure(pod)
        try:
            asks = self._packages.unknown(environment)
            recipe = await self._resolve(environment, asks)
            if asks and await self._packages.ask(environment, recipe):
                asks = False
                recipe = await self._resolve(environment, asks)
        except PermanentError as error:
            self._pools.rests(environment.key)
            await self._refuse(environment, error)
            return None
        pooled = bare(environment) if asks else environment
        wanted, plan = self._pools.look(pooled, recipe)
        problems, again = await self._pools.carry_out(pooled, recipe, plan)
        for problem in problems:
            if isinstance(problem, PermanentError):
                await self._refuse(environment, problem)
                raise problem
        await recipes.drop_old(context, environment, recipe)
        present = context.pods.group(group)
        found = findings(
            present,
            context.failures,
            wanted,
            context.proofs.get((namespace, recipe.reach.network)),
            context.clock(),
            self._pools.trials(environment.key),
        )
        found = held_up(found, context.refusal(present) or context.egress.problem(present))
        await self._write_status(
            environment,
            asking(with_refusals(found, problems), recipe)
            if asks
            else with_refusals(found, problems),
            counts(present, context.failures, wanted.size),
            None if asks else recipe,
        )
        for problem in problems:
            raise problem
        return min(again or ASKED_AGAIN_SECONDS, ASKED_AGAIN_SECONDS) if asks else again

    def look_anew(self) -> None:
        """Let the next look at each Environment ask again for what is not watched, however lately
        one did: what changes just after a look between two resyncs would else be seen at the second
        one only.
        """
        self._resolved_at.clear()
        self._grounds.look_anew()

    async def _confirm(self, namespace: str, name: str) -> None:
        """Ask the API server for an Environment whose pods go by themselves: the garbage collector
        takes them when it is deleted, and a watch that was down does not tell of that.
        """
        context, key = self._context, (namespace, name)
        known = context.environments.get(namespace, name)
        if known is None or key not in context.doubted:
            context.doubted.discard(key)
            return
        try:
            found = await context.api.get(ENVIRONMENTS, namespace, name)
        except NotFoundError:
            identity = {"namespace": namespace, "name": name, "uid": known.metadata.uid}
            context.environments.remove({"metadata": identity})
        else:
            context.environments.put(found)
        context.doubted.discard(key)

    async def _resolve(self, environment: EnvironmentObject, asks: bool) -> Recipe:
        """The recipe; with `asks` that of the pod which is asked for its package managers."""
        namespace, now = environment.metadata.namespace, asyncio.get_running_loop().time()
        self._check_admission(namespace)
        before = self._context.resolved.get(environment.key)
        fresh = now < self._resolved_at.get(environment.key, -1e9) + RECHECKED_AFTER_SECONDS
        known = before.recipe if before and before.of(environment) else None
        repositories = self._context.repositories
        current = self._grounds.current(namespace) and repositories.current(environment)
        if fresh and known and not asks and current:
            return known
        await self._grounds.prepare(environment)
        spec = environment.spec
        values = await read(self._context.api, namespace, references(spec.files, spec.env))
        around = Around(
            await self._grounds.gateway(),
            self._packages.of(environment),
            repositories.commits(environment),
        )
        # Also where the image is asked first: what is wrong is said before.
        recipe = build(environment, values, self._context.settings, around)
        if asks:
            recipe = build(bare(environment), {}, self._context.settings)
        await recipes.make(self._context, environment, recipe)
        self._resolved_at[environment.key] = now
        if asks:
            message = f"Environment {environment.metadata.name}: {ASKING}"
            self._publish(environment, None, Failure(conditions.READING_PACKAGE_HOSTS, message))
        else:
            self._publish(environment, recipe, None)
        return recipe

    def _check_admission(self, namespace: str) -> None:
        why = self._context.unguarded(namespace)
        if why is not None:
            if namespace not in self._context.admission:
                # Known within moments of the start: no reason to tell anybody.
                raise TransientError(why.message)
            raise PermanentError(why.reason, why.message)

    def _guarded(self, namespace: str) -> list[Finding]:
        context = self._context
        if not context.settings.admission_policies:
            return []
        return [admission_finding(context.admission.get(namespace))]

    def _publish(
        self, environment: EnvironmentObject, recipe: Recipe | None, problem: Failure | None
    ) -> None:
        context, metadata = self._context, environment.metadata
        resolved = Resolved(metadata.uid, metadata.generation, recipe, problem)
        before = context.resolved.get(environment.key)
        context.resolved[environment.key] = resolved
        if before != resolved:
            context.enqueue_waiting_sessions(*environment.key)

    async def _refuse(self, environment: EnvironmentObject, error: PermanentError) -> None:
        """Say what is wrong; the pods of the last good recipe stay as they are."""
        name = environment.metadata.name
        problem = Failure(
            conditions.ENVIRONMENT_NOT_READY, f"Environment {name} is not ready: {error}"
        )
        self._publish(environment, None, problem)
        pods_now = self._context.pods.group(("environment", *environment.key))
        kinds = {(each.namespace, each.network) for each in pods_now}
        proofs = [proof for kind, proof in self._context.proofs.items() if kind in kinds]
        await self._write_status(
            environment,
            refused(Failure(error.reason, str(error)), proofs),
            counts(pods_now, self._context.failures, environment.status.pool.wanted),
            None,
        )

    async def _write_status(
        self,
        environment: EnvironmentObject,
        found: list[Finding],
        pool: PoolCounts,
        recipe: Recipe | None,
    ) -> None:
        status, metadata = environment.status, environment.metadata
        git = self._context.repositories.findings(environment)
        found = [*found, *self._guarded(metadata.namespace), *git]
        present = [each for each in status.conditions if git or each.type != conditions.GIT_FETCHED]
        updated = conditions.update(present, found, metadata.generation, self._context.clock())
        changes: JSON = {
            "observed_generation": metadata.generation,
            "conditions": updated,
            "pool": pool,
        }
        if recipe:
            managers = environment.spec.networking.allow_package_managers
            changes |= {
                "recipe_hash": recipe.hash,
                "allowed_hosts": list(recipe.reach.hosts),
                "package_managers": self._packages.said(environment) if managers else None,
                "git": self._context.repositories.status(environment),
            }
        new = status.model_copy(update=changes)
        if new == status:
            return
        # Which Secrets there are is noted where they are made, and never out of an old state.
        body = new.model_dump(mode="json", by_alias=True, exclude={"recipes"})
        namespace, name = environment.key
        answer = await self._context.api.patch_status(ENVIRONMENTS, namespace, name, body)
        self._context.environments.put(answer)
        for finding in found:
            old = next((each for each in status.conditions if each.type == finding.type), None)
            passing = (conditions.POOL_FILLING, conditions.FETCHING_GIT)
            news = finding.status != "Unknown" and finding.reason not in passing
            if news and (old is None or old.status != finding.status):
                self._recorder.record(
                    names.ENVIRONMENT_KIND,
                    metadata,
                    finding.reason,
                    finding.message,
                    "Normal" if finding.status == "True" else "Warning",
                )

    async def _remove(self, namespace: str, name: str) -> None:
        """The Environment is gone: its pool goes; claimed pods are their sessions'."""
        context = self._context
        context.resolved.pop((namespace, name), None)
        self._resolved_at.pop((namespace, name), None)
        self._pools.forget((namespace, name))
        context.repositories.forget((namespace, name))
        for pod in context.pods.group(("environment", namespace, name)):
            if pod.state != names.STATE_CLAIMED and not pod.deleting:
                await pods.delete_unclaimed(context, pod)
        context.enqueue_waiting_sessions(namespace, name)


def asking(found: list[Finding], recipe: Recipe) -> list[Finding]:
    """The conditions while a pod of the image is asked: no session can be had of it."""
    message = f"{ASKING}: {recipe.image}"
    ready = Finding(conditions.READY, "False", conditions.READING_PACKAGE_HOSTS, message)
    return [ready if each.type == conditions.READY else each for each in found]


def held_up(found: list[Finding], problem: Failure | None) -> list[Finding]:
    """What keeps pods from being warm, which they do not say themselves, is said where the pool is
    not full.
    """
    if problem is None:
        return found
    # Without its claim a pod is said to have no volume.
    silent = (conditions.POOL_FILLING, conditions.VOLUME_NOT_BOUND)
    return [
        Finding(each.type, "False", problem.reason, problem.message)
        if each.status == "False" and each.reason in silent
        else each
        for each in found
    ]


def with_refusals(found: list[Finding], problems: list[OperatorError]) -> list[Finding]:
    """What the API server forbids is said in the conditions that are False for it."""
    refused = next((each for each in problems if isinstance(each, RefusedError)), None)
    if refused is None:
        return found
    return [
        Finding(each.type, "False", pods.refusal(refused), str(refused))
        if each.status == "False" and each.reason == conditions.POOL_FILLING
        else each
        for each in found
    ]
