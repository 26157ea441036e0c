"""How one CA takes over from another: whoever meets, each trusts what the other shows."""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cloister_operator.generations import MAX_FORMER, Generations
from cloister_operator.identity import BACKDATED, CA_LIFETIME, Authority
from cloister_operator.plan import rotation
from cloister_operator.plan.rotation import Facts, Step

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def facts(**changed: object) -> Facts:
    usual: dict[str, object] = {
        "changed_at": NOW,
        "ends": NOW + CA_LIFETIME,
        "upcoming": False,
        "former": 0,
        "requested": False,
        "untold": 0,
        "from_before": 0,
    }
    return Facts(**(usual | changed))  # type: ignore[arg-type]


def step(after: timedelta, **changed: object) -> Step:
    return rotation.plan(facts(**changed), NOW + after, rotation.OVERLAP, MAX_FORMER)


@pytest.mark.parametrize(
    ("after", "changed", "expected"),
    [
        (HOUR, {}, Step.NONE),
        (HOUR, {"requested": True}, Step.INTRODUCE),
        (CA_LIFETIME - rotation.RENEWED_BEFORE, {}, Step.NONE),
        (CA_LIFETIME - rotation.RENEWED_BEFORE + HOUR, {}, Step.INTRODUCE),
        # Who was told so many times has to wait.
        (HOUR, {"requested": True, "former": MAX_FORMER}, Step.NONE),
        (HOUR, {"upcoming": True}, Step.NONE),
        (rotation.OVERLAP, {"upcoming": True}, Step.SWITCH),
        (rotation.OVERLAP, {"upcoming": True, "untold": 1}, Step.NONE),
        (rotation.PATIENCE, {"upcoming": True, "untold": 1}, Step.SWITCH),
        # Another request while one is followed changes nothing yet.
        (HOUR, {"upcoming": True, "requested": True}, Step.NONE),
        (HOUR, {"former": 1}, Step.NONE),
        (rotation.OVERLAP, {"former": 1}, Step.DROP),
        (rotation.OVERLAP, {"former": 1, "from_before": 1}, Step.NONE),
        (rotation.RETAINED, {"former": 1, "from_before": 1}, Step.DROP),
    ],
)
def test_steps(after: timedelta, changed: dict[str, object], expected: Step) -> None:
    assert step(after, **changed) is expected


def test_what_is_stored_is_read_again() -> None:
    first = Generations.first(NOW)
    introduced = first.introduced(NOW + HOUR, "please")
    switched = introduced.switched(NOW + 2 * HOUR)
    for each in (first, introduced, switched, switched.dropped(NOW + 3 * HOUR)):
        again = Generations.from_secret_data(each.to_secret_data())
        assert again.to_secret_data() == each.to_secret_data()
        assert (again.changed_at, again.request) == (each.changed_at, each.request)
    assert introduced.request == switched.request == "please"


def test_a_secret_of_a_version_without_rotation_is_read() -> None:
    old = Authority.create(NOW)
    found = Generations.from_secret_data(old.to_secret_data())
    assert found.authority().ca_pem == old.ca_pem
    assert found.changed_at == NOW
    assert (found.upcoming, found.former, found.request) == (None, (), "")


@pytest.mark.parametrize(
    "broken", ["tls.crt", "tls.key", "next.key", "former.crt", "rotation.json"]
)
def test_an_unfit_secret_is_refused_without_its_content(broken: str) -> None:
    data = Generations.first(NOW).introduced(NOW, "x").switched(NOW).introduced(NOW, "y")
    stored = data.to_secret_data()
    before = stored[broken]
    stored[broken] = before[: len(before) // 2].rstrip(b"-\n") + b"!"
    if broken == "former.crt":
        stored[broken] = before.replace(b"MII", b"!!!")
    with pytest.raises(ValueError, match="cannot be read") as refused:
        Generations.from_secret_data(stored)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_no_pod_is_told_of_the_first_ca() -> None:
    assert not rotation.is_from_before(NOW, Generations.first(NOW).changed_at)
    assert rotation.is_from_before(NOW, Generations.first(NOW).introduced(NOW, "").changed_at)


def test_the_key_of_an_earlier_ca_is_gone() -> None:
    first = Generations.first(NOW)
    switched = first.introduced(NOW, "x").switched(NOW)
    assert first.issuing.key_pem not in b"".join(switched.to_secret_data().values())
    assert first.issuing.ca_pem in switched.former


def test_bundles_stay_small() -> None:
    found = Generations.first(NOW)
    for number in range(3 * MAX_FORMER):
        found = found.introduced(NOW, str(number)).switched(NOW)
    assert len(found.former) == MAX_FORMER
    assert found.dropped(NOW).also_trusted == ()


def test_nothing_expired_is_trusted_further() -> None:
    first = Generations.first(NOW)
    late = NOW + CA_LIFETIME + HOUR
    assert first.introduced(late, "").switched(late).former == ()


def test_adopting_is_news_once() -> None:
    authority = Authority.create(NOW)
    found = Generations.first(NOW).introduced(NOW, "x")
    assert found.adopt(authority)
    assert not found.adopt(authority)
    assert authority.ca_pem == found.issuing.ca_pem + found.also_trusted[0]
    assert found.switched(NOW).adopt(authority)
    assert authority.issuer_pem == found.also_trusted[0]


@dataclass
class Worker:
    """Who holds a certificate of a session, and renews it before it ends."""

    issuer: int
    trusts: frozenset[int]
    until: datetime


@dataclass
class Pod:
    """A sandbox: what it shows, whom it trusts, and the worker of its session."""

    created: datetime
    issuer: int
    trusts: frozenset[int]
    claimed: bool = False
    reachable: bool = True
    worker: Worker | None = None


@dataclass
class World:
    """CAs by number, and everybody who lives by them; the plan's steps are carried out."""

    now: datetime = NOW
    issuing: int = 0
    upcoming: int | None = None
    former: frozenset[int] = frozenset()
    changed_at: datetime = NOW
    ends: datetime = NOW + CA_LIFETIME
    upcoming_ends: datetime = NOW
    requested: bool = False
    made: int = 1
    told: set[int] = field(default_factory=set)
    """Ids of pods that this operator has told; a restart forgets it."""
    pods: list[Pod] = field(default_factory=list)
    reader: frozenset[int] = frozenset({0})
    """Whom a client of the Sessions API trusts that reads the ConfigMap now and then."""
    read_at: datetime = NOW

    @property
    def bundle(self) -> frozenset[int]:
        return (
            self.former | {self.issuing} | ({self.upcoming} if self.upcoming is not None else set())
        )

    def tick(self) -> None:
        """The operator looks: it tells pods, and makes the step that is due."""
        before = [pod for pod in self.pods if rotation.is_from_before(pod.created, self.changed_at)]
        for pod in before:
            heard = pod.reachable and self.issuing in pod.trusts
            if heard and id(pod) not in self.told:
                pod.trusts = self.bundle
                self.told.add(id(pod))
        untold = sum(1 for pod in before if id(pod) not in self.told)
        found = Facts(
            self.changed_at,
            self.ends,
            self.upcoming is not None,
            len(self.former),
            self.requested,
            untold,
            len(before),
        )
        due = rotation.plan(found, self.now, rotation.OVERLAP, MAX_FORMER)
        if due is Step.NONE:
            return
        if due is Step.INTRODUCE:
            self.upcoming, self.made, self.requested = self.made, self.made + 1, False
            self.upcoming_ends = self.now + CA_LIFETIME
        elif due is Step.SWITCH:
            assert self.upcoming is not None
            self.former |= {self.issuing}
            self.issuing, self.upcoming, self.ends = self.upcoming, None, self.upcoming_ends
        else:
            self.former = frozenset()
        self.changed_at = self.now
        self.told.clear()

    def credentials(self) -> Worker:
        return Worker(self.issuing, self.bundle, self.now + HOUR)

    def check(self) -> None:
        """Every handshake that may happen now succeeds."""
        assert self.issuing in self.reader, "a client refuses the Sessions API"
        for pod in self.pods:
            if not pod.reachable:
                continue
            assert pod.issuer in self.bundle, "the operator refuses the pod"
            assert self.issuing in pod.trusts, "the pod refuses the operator"
            if pod.worker is not None:
                assert pod.issuer in pod.worker.trusts, "the worker refuses its pod"
                assert pod.worker.issuer in pod.trusts, "the pod refuses its worker"


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(50, 400))
def test_nobody_ever_meets_somebody_unknown(seed: int, steps: int) -> None:
    rng, world = random.Random(seed), World()
    rotations = 0
    for _ in range(steps):
        world.now += timedelta(minutes=rng.choice([1, 5, 30, 50]))
        match rng.randrange(8):
            case 0:
                world.pods.append(Pod(world.now, world.issuing, world.bundle))
            case 1 if world.pods:
                # A claim gives the session's certificate, and its worker one.
                pod = rng.choice(world.pods)
                if not pod.claimed and pod.reachable:
                    pod.claimed, pod.issuer, pod.worker = True, world.issuing, world.credentials()
            case 2 if world.pods and rng.random() < 0.5:
                world.pods.remove(rng.choice(world.pods))
            case 3 if rng.random() < 0.3:
                world.requested = True
            case 4:
                world.told.clear()
            case 5 if world.pods:
                pod = rng.choice(world.pods)
                # Less than the operator's patience: who is away for a week is given up.
                pod.reachable = not pod.reachable
            case _:
                pass
        if world.now - world.changed_at > timedelta(days=6):
            for pod in world.pods:
                pod.reachable = True
        for pod in world.pods:
            # Renewed at two thirds of its hour; one that is out of reach renews all the same.
            if pod.worker and pod.worker.until - world.now < HOUR / 3:
                pod.worker = world.credentials()
        if world.now - world.read_at > HOUR:
            world.reader, world.read_at = world.bundle, world.now
        before = world.issuing
        world.tick()
        rotations += world.issuing != before
        world.check()
    event(f"{min(rotations, 3)} rotations")


def test_a_leaf_of_the_old_ca_is_trusted_until_it_ends() -> None:
    generations = Generations.first(NOW)
    pod = generations.authority().pod_server("0f8fad5b-d9cb-469f-a165-70867728950e", NOW)
    assert pod.not_after + BACKDATED < NOW + rotation.RETAINED
