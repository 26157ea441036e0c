"""Tries whether the admission policies of the sandbox namespaces have an effect."""

import asyncio
import logging

from ..cluster.resources import NETWORK_POLICIES, PODS
from ..errors import NotFoundError, OperatorError, PermanentError, QuotaError, RefusedError
from ..metrics import ADMISSION_ENFORCED
from ..plan import admission
from ..plan.admission import Attempt, Tried, Verdict
from .context import Context

log = logging.getLogger(__name__)

_RESOURCES = {"pods": PODS, "networkpolicies": NETWORK_POLICIES}


class SelfTest:
    """Keeps `context.admission`: with dry runs, at the start and every hour."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Try again and again, until cancelled."""
        while True:
            verdicts = await self.look()
            await asyncio.sleep(admission.again_after(verdicts))

    async def look(self) -> list[Verdict | None]:
        """Try in every sandbox namespace; what an API server that is away leaves open stays as it
        was found before.
        """
        namespaces = self._context.settings.sandbox_namespaces
        return list(await asyncio.gather(*(self._look(each) for each in namespaces)))

    async def _look(self, namespace: str) -> Verdict | None:
        context = self._context
        try:
            tried = [await self._try(namespace, each) for each in admission.attempts(namespace)]
        except NotFoundError:
            log.debug("there is no namespace %s yet", namespace)
            return None
        except OperatorError as error:
            log.warning("the admission policies of %s cannot be tried: %s", namespace, error)
            return None
        verdict = admission.judge(tried)
        if verdict is None:
            said = "; ".join(each.refusal or "" for each in tried)
            log.warning("whether %s has admission policies cannot be told: %s", namespace, said)
            return None
        before = context.admission.get(namespace)
        context.admission[namespace] = verdict
        ADMISSION_ENFORCED.labels(namespace).set(int(verdict.enforced))
        if before != verdict:
            level = logging.INFO if verdict.enforced else logging.ERROR
            log.log(level, "admission to namespace %s: %s", namespace, verdict.message)
            context.enqueue_environments(namespace)
        return verdict

    async def _try(self, namespace: str, attempt: Attempt) -> Tried:
        resource = _RESOURCES[attempt.kind]
        try:
            await self._context.api.try_apply(resource, namespace, attempt.body)
        except QuotaError:
            # Quotas are asked after all policies.
            return Tried(attempt, None)
        except (RefusedError, PermanentError) as error:
            return Tried(attempt, str(error))
        return Tried(attempt, None)
