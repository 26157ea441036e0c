"""The self-test of the admission policies: what it shows, and what comes of it."""

import copy
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import yaml

from cloister_operator import names
from cloister_operator.controller.admission import SelfTest
from cloister_operator.errors import (
    NotFoundError,
    OperatorError,
    PermanentError,
    QuotaError,
    RefusedError,
    TransientError,
)
from cloister_operator.identity import Authority
from cloister_operator.plan import admission
from cloister_operator.plan.admission import Tried
from support.fake_api import Connection
from support.fake_operator import Operator, World
from support.operator_objects import NAMESPACE

POLICY = (
    "pods \"x\" is forbidden: ValidatingAdmissionPolicy 'cloister-sandbox-pods' with binding "
    "'cloister-sandbox-pods' denied request: no container is privileged"
)
POD_SECURITY = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged'


def tried(*refusals: str | None) -> list[Tried]:
    return [
        Tried(attempt, refusal)
        for attempt, refusal in zip(admission.attempts(NAMESPACE), refusals, strict=True)
    ]


def test_it_is_enforced_when_all_was_refused_by_who_should() -> None:
    verdict = admission.judge(tried(POD_SECURITY, POLICY, POLICY))
    assert verdict is not None
    assert verdict.enforced
    webhook = 'admission webhook "validate.kyverno.svc-fail" denied the request: no'
    other = admission.judge(tried(webhook, webhook, webhook))
    assert other is not None
    assert other.enforced


@pytest.mark.parametrize("let_through", [0, 1, 2])
def test_it_is_not_when_one_was_let_through(let_through: int) -> None:
    refusals: list[str | None] = [POLICY] * 3
    refusals[let_through] = None
    verdict = admission.judge(tried(*refusals))
    assert verdict is not None
    assert not verdict.enforced
    assert admission.attempts(NAMESPACE)[let_through].what in verdict.message


def test_a_refusal_for_another_reason_shows_nothing() -> None:
    no_right = 'pods is forbidden: User "x" cannot create resource "pods" in API group ""'
    assert admission.judge(tried(POD_SECURITY, no_right, POLICY)) is None
    # Pod Security would have let that one in: it is about something else.
    assert admission.judge(tried(POD_SECURITY, POD_SECURITY, POLICY)) is None
    verdict = admission.judge(tried(no_right, None, POLICY))
    assert verdict is not None
    assert not verdict.enforced


def test_it_is_tried_hourly_and_soon_again_where_it_failed() -> None:
    good, bad = admission.Verdict(True, ""), admission.Verdict(False, "")
    assert admission.again_after([good, good]) == 3600
    assert admission.again_after([good, bad]) == admission.again_after([good, None]) < 60


def test_what_hinders_sessions() -> None:
    good, bad = admission.Verdict(True, "fine"), admission.Verdict(False, "open")
    for required in (True, False):
        assert admission.hindrance(good, required) is None
    assert admission.hindrance(bad, required=False) is None
    assert admission.hindrance(None, required=False) is None
    hindered = admission.hindrance(bad, required=True)
    assert hindered is not None
    assert (hindered.reason, hindered.message) == ("AdmissionNotEnforced", "open")
    assert admission.hindrance(None, required=True) is not None


def test_the_attempts_are_as_bad_as_they_say() -> None:
    privileged, curious, opened = admission.attempts(NAMESPACE)
    assert privileged.body["spec"]["containers"][0]["securityContext"]["privileged"]
    assert curious.body["spec"]["automountServiceAccountToken"]
    assert opened.body["metadata"]["name"] == names.DENY_POLICY
    assert opened.body["spec"]["egress"] == [{}]
    for each in (privileged, curious, opened):
        assert each.body["metadata"]["namespace"] == NAMESPACE
        assert yaml.safe_load(yaml.safe_dump(each.body)) == copy.deepcopy(each.body)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World(
        Authority.create(datetime(2026, 4, 1, tzinfo=UTC)),
        admission_policies=True,
        admission_required=True,
    )
    yield made
    await made.close()


async def look(operator: Operator, refusal: OperatorError | None) -> None:
    """One round of the self-test, whose dry runs end so."""
    operator.connection.refusal = refusal
    await SelfTest(operator.context).look()


async def test_no_session_is_given_from_the_moment_on_in_which_it_is_found_open(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the Environments are not looked at after that."""
    operator = world.start()
    await operator.context.synced.wait()
    await look(operator, RefusedError(POLICY))
    world.apply_environment(pool={"size": 1})
    await operator.until(lambda: world.condition(world.environment())[0] == "True")
    monkeypatch.setattr(operator.context, "enqueue_environments", lambda _: None)
    await look(operator, None)
    world.apply_session()
    await operator.settle()
    assert world.phase() == "Pending"


async def test_sessions_wait_until_it_is_known_and_while_it_is_not_so(world: World) -> None:
    operator = world.start()
    await operator.context.synced.wait()
    world.apply_environment(pool={"size": 1})
    world.apply_session()
    await look(operator, TransientError("the API server is away"))
    assert operator.context.admission == {}
    await look(operator, None)
    await operator.until(
        lambda: world.condition(world.environment()) == ("False", "AdmissionNotEnforced")
    )
    assert world.condition(world.environment(), "AdmissionEnforced")[0] == "False"
    assert world.pods() == []
    await look(operator, RefusedError(POLICY))
    await operator.until(lambda: world.phase() == "Running")
    await operator.until(
        lambda: (
            world.condition(world.environment(), "AdmissionEnforced") == ("True", "AdmissionProven")
        )
    )
    # Later it is found open: who has a session keeps it, and nobody gets another one.
    await operator.until(lambda: world.condition(world.environment())[0] == "True")
    await look(operator, None)
    world.apply_session("s2")
    await operator.settle()
    assert (world.phase("s1"), world.phase("s2")) == ("Running", "Pending")
    # An API server that is away says nothing else than before.
    await look(operator, TransientError("away"))
    assert world.condition(world.environment()) == ("False", "AdmissionNotEnforced")
    await look(operator, RefusedError(POLICY))
    await operator.until(lambda: world.phase("s2") == "Running")


async def test_where_it_is_not_required_it_is_only_told(world: World) -> None:
    world.settings = world.settings.model_copy(update={"admission_required": False})
    operator = world.start()
    await operator.context.synced.wait()
    world.apply_environment(pool={"size": 1})
    await look(operator, None)
    await operator.until(
        lambda: (
            world.condition(world.environment(), "AdmissionEnforced")
            == ("False", "AdmissionNotEnforced")
        )
    )
    await operator.until(lambda: world.pool_is(1))
    assert world.condition(world.environment())[0] == "True"


@pytest.mark.parametrize(
    ("refusal", "enforced"),
    [
        (QuotaError("exceeded quota: q", "q"), False),
        (PermanentError("Rejected", POLICY), True),
        (RefusedError("pods is forbidden: User cannot create"), None),
    ],
)
async def test_answers(world: World, refusal: OperatorError, enforced: bool | None) -> None:
    """A quota is asked after all policies: who meets it was let through."""
    operator = Operator(world, Connection(world.cluster))
    world.operators.append(operator)
    await operator.context.synced.wait()
    await look(operator, refusal)
    found = operator.context.admission.get(NAMESPACE)
    assert (found.enforced if found else None) is enforced


async def test_a_namespace_that_takes_no_part_is_told_so(world: World) -> None:
    """Nobody tries there; it must not wait for that."""
    world.settings = world.settings.model_copy(update={"sandbox_namespaces": ()})
    operator = world.start()
    await operator.context.synced.wait()
    world.apply_environment()
    await operator.until(
        lambda: world.condition(world.environment()) == ("False", "NamespaceNotEnabled")
    )


async def test_a_namespace_that_is_not_there_yet_shows_nothing(world: World) -> None:
    operator = world.start()
    await operator.context.synced.wait()
    await look(operator, NotFoundError("namespaces not found"))
    assert operator.context.admission == {}
