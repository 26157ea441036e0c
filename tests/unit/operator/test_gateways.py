"""What is pushed to egress gateways that listen, and who waits until they know."""

import asyncio
from datetime import timedelta

import pytest

from cloister_operator.api.pod import PodView
from cloister_operator.controller import gateway_link
from cloister_operator.controller import gateways as module
from cloister_operator.errors import TransientError
from cloister_operator.plan.grants import GONE_MARGIN, SILENT_FOR
from support.eventually import until
from support.fake_gateway import FakeGateway, Held
from support.gateway_site import Pusher, Site
from support.operator_objects import NOW

A_HOST = frozenset({"a.example"})
SECOND = timedelta(seconds=1)


@pytest.fixture
def impatient(brisk: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways that hang get less time: for tests in which nothing depends on one being in time."""
    monkeypatch.setattr(module, "REVOKE_SECONDS", 0.2)
    monkeypatch.setattr("cloister_operator.sandboxes.gateways.APPLY_SECONDS", 0.2)
    monkeypatch.setattr("cloister_operator.sandboxes.gateways.INFO_SECONDS", 0.2)


def knows(gateway: FakeGateway, ip: str, uid: str = "", hosts: frozenset[str] = A_HOST) -> bool:
    return gateway.reaches(ip) == ((uid, hosts) if uid else ("", frozenset()))


async def granted(operator: Pusher, pod: PodView) -> None:
    async with asyncio.timeout(30):
        await operator.egress.until_granted(pod)


async def test_a_pod_is_let_in_once_every_gateway_knows_it(site: Site) -> None:
    one, two = await site.gateway("g1"), await site.gateway("g2")
    two.answers.clear()
    operator = site.operator().start()
    pod = site.pod("p1", "10.244.0.5")
    await until(lambda: knows(one, "10.244.0.5", pod.uid), pause=0.001)
    await until(lambda: one.infos or len(one.pushes) == 1)
    assert not operator.egress.granted(pod)
    two.answers.set()
    await granted(operator, pod)
    assert knows(two, "10.244.0.5", pod.uid)
    assert one.held.denied_ranges == {"10.244.0.0/16"}


async def test_a_new_gateway_gets_all_of_it_before_it_is_ready(site: Site) -> None:
    await site.gateway("g1")
    operator = site.operator().start()
    pods = [site.pod(f"p{n}", f"10.244.0.{n + 1}") for n in range(20)]
    for pod in pods:
        await granted(operator, pod)
    new = await site.gateway("g2", ready=False)
    await until(lambda: new.ready)
    assert all(knows(new, pod.ip, pod.uid) for pod in pods)
    # From here on nobody is let in whom it does not know, Ready or not yet.
    new.answers.clear()
    late = site.pod("late", "10.244.1.1")
    await until(lambda: knows(site.gateways["g1"], late.ip, late.uid))
    assert not operator.egress.granted(late)


async def test_one_that_has_yet_to_start_holds_nobody_up(site: Site) -> None:
    await site.gateway("g1")
    operator = site.operator().start()
    site.addresses["g2"] = ""
    site.see("g2", ready=False, ran=False)
    await granted(operator, site.pod("p1", "10.244.0.5"))


@pytest.mark.usefixtures("brisk")
async def test_an_answer_that_is_lost_lets_nobody_in_and_is_asked_for_again(site: Site) -> None:
    gateway = await site.gateway("g1")
    gateway.loses_answers = True
    operator = site.operator().start()
    pod = site.pod("p1", "10.244.0.5")
    await until(lambda: len(gateway.pushes) >= 3)
    assert knows(gateway, pod.ip, pod.uid)
    assert not operator.egress.granted(pod)
    # The same state keeps its number: nothing is cut by its coming again.
    assert len(set(gateway.pushes)) == 1
    gateway.loses_answers = False
    await granted(operator, pod)
    assert gateway.cut == []


@pytest.mark.usefixtures("brisk")
async def test_one_that_starts_anew_is_told_again(site: Site) -> None:
    gateway = await site.gateway("g1")
    operator = site.operator().start()
    pod = site.pod("p1", "10.244.0.5")
    await granted(operator, pod)
    gateway.restart()
    await until(lambda: gateway.ready)
    assert knows(gateway, pod.ip, pod.uid)
    assert gateway.cut == []


async def test_a_new_pod_waits_until_those_that_are_gone_are_forgotten(site: Site) -> None:
    """Also those that others deleted: their address may be the new one's."""
    gateway = await site.gateway("g1")
    operator = site.operator().start()
    await granted(operator, site.pod("p1", "10.244.0.5"))
    await operator.egress.until_clean()
    site.gone("p1")
    await operator.egress.until_clean()
    assert knows(gateway, "10.244.0.5")
    # Pods that come meanwhile keep nobody waiting.
    gateway.answers.clear()
    site.pod("p2", "10.244.0.6")
    await operator.egress.until_clean()


async def test_its_kubelet_tells_of_it_sooner(site: Site) -> None:
    gateway = await site.gateway("g1")
    operator = site.operator().start()
    await granted(operator, site.pod("p1", "10.244.0.5"))
    gateway.restart()
    site.see("g1", ready=False, restarts=1)
    async with asyncio.timeout(gateway_link.HEARTBEAT - 1):
        await until(lambda: gateway.ready)


@pytest.mark.usefixtures("brisk")
async def test_a_pod_is_revoked_everywhere_before_its_deletion_goes_on(site: Site) -> None:
    gateways = [await site.gateway("g1"), await site.gateway("g2")]
    operator = site.operator().start()
    gone, stays = site.pod("p1", "10.244.0.5"), site.pod("p2", "10.244.0.6")
    await granted(operator, gone)
    await granted(operator, stays)
    await operator.egress.revoke(gone)
    for each in gateways:
        assert knows(each, gone.ip)
        assert knows(each, stays.ip, stays.uid)
        assert each.cut == [gone.uid]
    # It stays so until the pod has gone, however often it is told of.
    site.pod(
        "p1", "10.244.0.5", annotations={"news": "1", "cloister.dev/egress-hosts": "b.example"}
    )
    await until(lambda: all(each.infos > 2 for each in gateways))
    assert all(knows(each, gone.ip) for each in gateways)


async def test_a_pod_that_stays_after_all_has_its_right_again(site: Site) -> None:
    await site.gateway("g1")
    operator = site.operator().start()
    pod = site.pod("p1", "10.244.0.5")
    await granted(operator, pod)
    await operator.egress.revoke(pod)
    assert not operator.egress.granted(pod)
    operator.egress.restore(pod)
    await granted(operator, pod)


async def test_whoever_deletes_a_pod_its_right_goes(site: Site) -> None:
    gateway = await site.gateway("g1")
    operator = site.operator().start()
    pod = site.pod("p1", "10.244.0.5")
    await granted(operator, pod)
    site.pod("p1", "10.244.0.5", deletionTimestamp="2026-05-01T12:00:05Z")
    await until(lambda: knows(gateway, pod.ip))
    assert gateway.cut == [pod.uid]


@pytest.mark.usefixtures("impatient")
async def test_an_address_is_nobody_elses_while_a_gateway_may_know_it(site: Site) -> None:
    """A gateway hangs, the pod goes, and another one gets its address."""
    well, hangs = await site.gateway("g1"), await site.gateway("g2")
    operator = site.operator().start()
    old = site.pod("old", "10.244.0.5", hosts=["secret.example"])
    await granted(operator, old)
    hangs.answers.clear()
    await operator.egress.revoke(old)
    site.gone("old")
    new = site.pod("new", "10.244.0.5")
    await until(lambda: knows(well, new.ip, new.uid))
    assert not operator.egress.granted(new)
    # Not even when nobody is led to it any more: a pod can still dial it.
    site.see("g2", ready=False, deletionTimestamp="2026-05-01T12:00:30Z")
    assert not operator.egress.granted(new)
    assert hangs.reaches(new.ip) == (old.uid, frozenset({"secret.example"}))
    with pytest.raises(TransientError, match=r"do not answer: .*g2"):
        await operator.egress.until_clean()
    # Another address is not concerned.
    other = site.pod("other", "10.244.0.9")
    await granted(operator, other)
    operator.now = NOW + timedelta(seconds=30) + GONE_MARGIN + SECOND
    await granted(operator, new)
    await operator.egress.until_clean()


@pytest.mark.usefixtures("impatient")
async def test_one_that_answers_again_lets_the_next_in(site: Site) -> None:
    hangs = await site.gateway("g1")
    operator = site.operator().start()
    old = site.pod("old", "10.244.0.5", hosts=["secret.example"])
    await granted(operator, old)
    hangs.answers.clear()
    await operator.egress.revoke(old)
    site.gone("old")
    new = site.pod("new", "10.244.0.5")
    assert not operator.egress.granted(new)
    hangs.answers.set()
    await granted(operator, new)
    assert knows(hangs, new.ip, new.uid)
    assert old.uid in hangs.cut


@pytest.mark.usefixtures("impatient")
async def test_the_next_deletion_waits_for_no_gateway_that_is_known_to_hang(site: Site) -> None:
    await site.gateway("g1")
    (hangs := await site.gateway("g2")).answers.clear()
    operator = site.operator().start()
    pods = [site.pod(f"p{n}", f"10.244.0.{n + 1}") for n in range(3)]
    await until(lambda: knows(site.gateways["g1"], pods[-1].ip, pods[-1].uid))
    await operator.egress.revoke(pods[0])
    known = operator.egress._known["uid-of-g2"]
    await until(lambda: operator.egress._is_silent(known))
    await operator.egress.revoke(pods[1])
    assert not hangs.pushes


@pytest.mark.usefixtures("impatient")
async def test_one_that_is_silent_and_not_ready_is_deleted(site: Site) -> None:
    well, hangs = await site.gateway("g1"), await site.gateway("g2")
    operator = site.operator().start()
    await granted(operator, site.pod("p1", "10.244.0.5"))
    hangs.answers.clear()
    operator.now += 2 * SILENT_FOR
    await until(lambda: operator.egress._known["uid-of-g2"].failing_since is not None)
    assert operator.deletions.names == []
    site.see("g2", ready=False)
    await until(lambda: operator.deletions.names)
    site.see("g2", ready=False, deletionTimestamp="2026-05-01T13:00:30Z")
    # What keeps them silent may be the operator: one at a time.
    count = len(operator.deletions.names)
    well.answers.clear()
    site.see("g1", ready=False)
    operator.now += 2 * SILENT_FOR
    await until(lambda: operator.egress._known["uid-of-g1"].failing_since is not None)
    assert set(operator.deletions.names) == {"g2"}
    assert len(operator.deletions.names) == count


async def test_a_former_leader_is_refused_and_stops(site: Site) -> None:
    gateway = await site.gateway("g1")
    former = site.operator(term=4).start()
    pod = site.pod("p1", "10.244.0.5")
    await granted(former, pod)
    next_one = site.operator(term=5).start()
    await granted(next_one, pod)
    late = site.pod("p2", "10.244.0.6")
    await granted(next_one, late)
    await until(lambda: former.egress._deposed)
    assert gateway.held.version[0] == 5
    assert not former.egress.granted(pod)
    pushes = len(gateway.pushes)
    site.pod("p3", "10.244.0.7")
    await until(lambda: knows(gateway, "10.244.0.7", "uid-of-p3"))
    assert {term for term, _ in gateway.pushes[pushes:]} == {5}
    assert gateway.cut == []


async def test_who_does_not_lead_pushes_nothing(site: Site) -> None:
    gateway = await site.gateway("g1")
    follower = site.operator()
    site.pod("p1", "10.244.0.5")
    frozen = site.operator(term=2)
    frozen.leads = False
    frozen.start()
    leader = site.operator(term=3).start()
    await granted(leader, site.pod("p2", "10.244.0.6"))
    assert {term for term, _ in gateway.pushes} == {3}
    assert not follower.egress.granted(site.pod("p2", "10.244.0.6"))


async def test_before_the_clusters_own_ranges_are_known_nothing_is_pushed(site: Site) -> None:
    gateway = await site.gateway("g1")
    operator = site.operator()
    operator.egress._ranges = None
    operator.start()
    pod = site.pod("p1", "10.244.0.5")
    await until(lambda: gateway.following)
    assert not gateway.pushes
    operator.egress.deny(["10.0.0.0/8"])
    await granted(operator, pod)
    assert gateway.held.denied_ranges == {"10.0.0.0/8"}


@pytest.mark.parametrize("term", [7, 8])
async def test_the_next_operator_pushes_the_same_and_cuts_nothing(site: Site, term: int) -> None:
    """In a new term, or in the old one, as when only its container started again."""
    gateway = await site.gateway("g1")
    first = site.operator(term=7).start()
    pods = [site.pod(f"p{n}", f"10.244.0.{n + 1}", hosts=[f"h{n % 3}.example"]) for n in range(9)]
    for pod in pods:
        await granted(first, pod)
    before = gateway.held.rules()
    await first.kill()
    site.operators.remove(first)
    second = site.operator(term=term).start()
    for pod in pods:
        await granted(second, pod)
    assert gateway.held.rules() == before
    assert gateway.cut == []


async def test_a_burst_of_changes_makes_few_pushes(site: Site) -> None:
    gateways = [await site.gateway("g1"), await site.gateway("g2")]
    operator = site.operator().start()
    await granted(operator, site.pod("first", "10.244.9.9"))
    before = [len(each.pushes) for each in gateways]
    pods = []
    for n in range(1000):
        pods.append(site.pod(f"p{n}", f"10.244.{n // 250}.{n % 250 + 1}"))
        if n % 10 == 0:
            await asyncio.sleep(0)
    for pod in pods:
        await granted(operator, pod)
    for each, count in zip(gateways, before, strict=True):
        assert len(each.held.sources) == 1001
        assert len(each.pushes) - count < 40


async def test_a_gateway_that_follows_somebody_else_lets_nobody_in(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = await site.gateway("g1")
    gateway.held = Held((10**18, 0))
    pod = site.pod("p1", "10.244.0.5")
    operator = site.operator().start()
    await until(lambda: operator.egress._deposed)
    assert not operator.egress.granted(pod)
    assert "follows another operator" in caplog.text


async def test_a_pod_that_went_before_it_was_revoked_is_forgotten(site: Site) -> None:
    """Who deletes it may have seen it a moment ago; nobody would tell of its end again."""
    await site.gateway("g1")
    operator = site.operator().start()
    pod = site.pod("p1", "10.244.0.5")
    await granted(operator, pod)
    site.gone("p1")
    await operator.egress.revoke(pod)
    assert operator.egress._withheld == set()
    # One that is there stays without its right until it is gone.
    other = site.pod("p2", "10.244.0.6")
    await granted(operator, other)
    await operator.egress.revoke(other)
    assert not operator.egress.granted(other)
    site.gone("p2")
    assert operator.egress._withheld == set()


async def test_two_thousand_sources_are_pushed_at_once(site: Site) -> None:
    gateway = await site.gateway("g1")
    pods = [
        site.pod(f"p{n}", f"10.244.{n // 250}.{n % 250 + 1}", [f"h{n % 100}.example"])
        for n in range(2000)
    ]
    await granted(site.operator().start(), pods[-1])
    assert len(gateway.pushes) == 1
    assert len(gateway.held.sources) == 2000
    assert len(gateway.held.policies) == 100
