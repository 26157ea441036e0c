"""Controllers with one safeguard taken out: the simulation has to find each of them out."""

import sys
from collections.abc import Sequence
from types import MethodType
from typing import Any

from cloister_operator import names
from cloister_operator.api.environment import EnvironmentObject
from cloister_operator.api.pod import PodView
from cloister_operator.api.session import SessionObject
from cloister_operator.controller.context import Context
from cloister_operator.errors import ConflictError, TransientError
from cloister_operator.plan.session import Promise
from cloister_operator.sandboxes import ClaimPayload
from support.fake_operator import Operator

JSON = dict[str, Any]


def claim_without_test(operator: Operator) -> None:
    """The claim's patch tests nothing: of two claims the last wins."""
    patch = operator.connection.json_patch

    async def careless(
        resource: Any, namespace: str, name: str, operations: Sequence[JSON]
    ) -> JSON:
        rest = [each for each in operations if each["op"] != "test"]
        return await patch(resource, namespace, name, rest)

    operator.connection.json_patch = careless  # type: ignore[method-assign]


def status_without_version(operator: Operator) -> None:
    """Session statuses are written whatever somebody else wrote before."""
    patch = operator.connection.patch_status

    async def careless(
        resource: Any, namespace: str, name: str, status: Any, version: str = ""
    ) -> JSON:
        return await patch(resource, namespace, name, status)

    operator.connection.patch_status = careless  # type: ignore[method-assign]


def cache_not_written_through(operator: Operator) -> None:
    """Answers to own writes are thrown away; only watches and lists fill the mirrors."""
    for store in (operator.context.pods, operator.context.sessions):
        put = store.put

        def from_watch_only(obj: JSON, put: Any = put) -> None:
            caller = sys._getframe(1).f_code.co_filename
            if caller.endswith(("witness.py", "controller.py", "cache.py")):
                put(obj)

        store.put = from_watch_only  # type: ignore[method-assign]


def claim_blind_to_reservations(operator: Operator) -> None:
    """A claim takes a pod that another claim of this process is just taking."""

    def take_warm(self: Context, environment: EnvironmentObject, recipe: str) -> PodView | None:
        for pod in self.pods.group(("state", *environment.key, recipe, names.STATE_WARM)):
            if pod.alive and pod.uid in self.usable:
                return pod
        return None

    operator.context.take_warm = MethodType(take_warm, operator.context)  # type: ignore[method-assign]


def lists_that_delete_nothing(operator: Operator) -> None:
    """What is not in a list after a 410 stays in the mirror."""
    store = operator.context.pods

    def replace(objects: Sequence[JSON], version: int, namespace: str = "") -> None:
        for obj in objects:
            store.put(obj)

    store.replace = replace  # type: ignore[method-assign,assignment]


def policies_forgotten(operator: Operator) -> None:
    """Network policies are not applied."""

    async def apply(resource: Any, namespace: str, body: JSON) -> JSON:
        return body

    operator.connection.apply = apply  # type: ignore[method-assign]


def places_not_checked_again(operator: Operator) -> None:
    """A claim trusts that no other operator gives places away."""

    async def trusting(session: Any, environment: Any, pod: Any) -> None:
        return None

    operator.controller._sessions._hand_overs._check_place = trusting  # type: ignore[method-assign]


def lost_pods_forgotten(operator: Operator) -> None:
    """A pod that was asked for without an answer is asked for again under another name."""
    operator.context.flights.lost = lambda *_: None  # type: ignore[method-assign]


def volume_conflicts_taken_for_claims(operator: Operator) -> None:
    """A volume claim that somebody else was writing at the same time means that the pod is
    another session's.
    """
    hand_overs = operator.controller._sessions._hand_overs
    tell = hand_overs._tell

    async def mistaken(session: SessionObject, pod: PodView, payload: ClaimPayload) -> bool:
        try:
            return await tell(session, pod, payload)
        except TransientError as error:
            if isinstance(error.__cause__, ConflictError):
                raise error.__cause__ from error
            raise

    hand_overs._tell = mistaken  # type: ignore[method-assign]


def promises_unknown(operator: Operator) -> None:
    """Who looks after a session that another process made believes that no caller was told of its
    pod yet.
    """

    async def nothing(session: Any, pod: Any) -> Promise:
        return Promise.NONE

    operator.controller._sessions._promise = nothing  # type: ignore[method-assign]


def first_pods_unknown(operator: Operator) -> None:
    """... and gives it any pod of the pool."""
    promises_unknown(operator)
    claims, promises = operator.controller._sessions._claims, operator.context.promises
    get_first = claims._get_first

    async def mine_only(session: SessionObject, environment: EnvironmentObject) -> float | None:
        return await get_first(session, environment) if promises.made(session) else None

    claims._get_first = mine_only  # type: ignore[method-assign]


def start_taken_from_the_write(operator: Operator) -> None:
    """A session runs since its status was written."""
    statuses = operator.controller._sessions._statuses
    running = statuses.running

    async def now(session: Any, pod: Any, credentials: Any, start: Any) -> None:
        await running(session, pod, credentials, operator.context.clock())

    statuses.running = now  # type: ignore[method-assign]


def contradicting_at_once(operator: Operator) -> None:
    """Whatever another process says of a session that waits, one's own word is put back."""
    said = operator.controller._sessions._statuses._said
    said.contradicted_until = lambda *_: None  # type: ignore[method-assign]


MUTANTS = (
    status_without_version,
    cache_not_written_through,
    claim_blind_to_reservations,
    policies_forgotten,
)
"""Those that schedules find out which anything was drawn for."""
