"""Who is told what the egress gateways decided: sessions, people, Prometheus."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cloister_operator import metrics
from cloister_operator.api.common import ObjectMeta
from cloister_operator.api.gateway import gateway_view
from cloister_operator.controller.context import Context
from cloister_operator.controller.decisions import Decisions
from cloister_operator.controller.recent import Recent
from cloister_operator.sandboxes.gateways import Decided, Decision
from support.fake_api import Connection
from support.fake_operator import World
from support.gateway_site import gateway_body, pod_body
from support.operator_objects import NAMESPACE, NOW, environment_body, session_body

GATEWAY = gateway_view(gateway_body("g1", "10.0.0.1"))
POD, SESSION = "uid-of-p1", "uid-of-s1"


class Notes:
    """controller.events.Recorder that remembers."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str, str]] = []

    def record(
        self, kind: str, subject: ObjectMeta, reason: str, message: str, type_: str = "Normal"
    ) -> None:
        self.notes.append((kind, subject.name, f"{type_} {reason}", message))


class Office:
    """Decisions, and what comes of them."""

    def __init__(self, world: World) -> None:
        self.context = Context(
            Connection(world.cluster), world.sandboxes, world.authority, world.settings, world.clock
        )
        self.notes = Notes()
        self.decisions = Decisions(self.context, self.notes)  # type: ignore[arg-type]
        for store, body in (
            (self.context.environments, environment_body("py")),
            (self.context.sessions, session_body("s1")),
        ):
            name = body["metadata"]["name"]
            body["metadata"] |= {"uid": f"uid-of-{name}", "resourceVersion": "1", "generation": 1}
            store.put(body)
        self.pod("p1", session="s1")

    def pod(self, name: str, session: str = "", environment: str = "py") -> None:
        body = pod_body(name, "10.244.0.5")
        labels = body["metadata"]["labels"]
        labels["cloister.dev/environment"] = environment
        if session:
            labels["cloister.dev/session"] = f"uid-of-{session}"
            owner = {"kind": "Session", "name": session, "uid": f"uid-of-{session}"}
            body["metadata"]["ownerReferences"] = [owner]
        self.context.pods.put(body)

    def decided(self, *decisions: Decision, history: bool = False, lost: int = 0) -> None:
        self.decisions.decided(GATEWAY, Decided("b1", 1, decisions, lost), history=history)


def decision(host: str = "a.example", **fields: Any) -> Decision:
    made = Decision(
        pod_uid=POD,
        host=host,
        port=443,
        allowed=False,
        reason="HostNotAllowed",
        count=1,
        first=NOW,
        last=NOW,
        bytes_sent=1,
        bytes_received=2,
    )
    return replace(made, **fields)


@pytest.fixture
def office(make_world: Callable[..., World]) -> Office:
    return Office(make_world())


def requests(verdict: str, namespace: str = NAMESPACE, environment: str = "py") -> float:
    labels = {"namespace": namespace, "environment": environment, "verdict": verdict}
    return metrics.REGISTRY.get_sample_value("cloister_egress_requests_total", labels) or 0.0


def test_a_denied_host_is_an_event_a_line_and_a_number(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    before = requests("denied")
    with caplog.at_level(logging.INFO):
        office.decided(decision("evil.example", count=3))
        office.decided(decision("evil.example", count=4))
    assert requests("denied") == before + 7
    (line,) = [each.getMessage() for each in caplog.records]
    assert line.startswith("egress to evil.example:443 denied: the Environment allows no such host")
    kind, name, what, message = office.notes.notes[0]
    assert (kind, name, what) == ("Session", "s1", "Warning EgressDenied")
    assert "evil.example:443" in message
    assert "spec.networking.allowedHosts" in message
    (record,) = office.context.recent.of(POD)
    assert (record.host, record.count, record.allowed) == ("evil.example", 7, False)


def test_ever_other_hosts_do_not_fill_the_log(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    allowed = [decision(f"{each}.fine.example", allowed=True) for each in range(50)]
    denied = [decision(f"{each}.evil.example") for each in range(500)]
    with caplog.at_level(logging.INFO):
        office.decided(*allowed, *denied)
        assert len(caplog.records) == Recent.NEWS
        # It is heard again, whatever it did before to be overheard.
        office.decided(decision("last.example", last=NOW + timedelta(minutes=1)))
    assert "last.example" in caplog.records[-1].getMessage()
    assert len(office.notes.notes) == 501


def test_connections_that_were_too_many_are_told_of(office: Office) -> None:
    office.decided(decision("", port=0, reason="TooManyConnections", count=9))
    ((_, name, what, message),) = office.notes.notes
    assert (name, what) == ("s1", "Warning EgressDenied")
    assert message == (
        "a connection to the egress gateway was denied: the sandbox has, or opens, more "
        "connections than the platform allows"
    )


def test_what_is_allowed_is_counted_and_kept(office: Office) -> None:
    before = requests("allowed")
    late = NOW + timedelta(seconds=9)
    office.decided(decision(allowed=True, reason="Allowed", count=2, last=late))
    office.decided(decision(allowed=True, reason="Allowed", first=NOW - timedelta(seconds=5)))
    assert requests("allowed") == before + 3
    assert not office.notes.notes
    (record,) = office.context.recent.of(POD)
    assert (record.first, record.last) == (NOW - timedelta(seconds=5), late)
    assert (record.count, record.bytes_sent, record.bytes_received) == (3, 2, 4)


def test_what_an_earlier_leader_was_told_is_known_and_not_told_again(office: Office) -> None:
    before = requests("denied")
    office.decided(decision(), history=True)
    assert requests("denied") == before
    assert not office.notes.notes
    assert len(office.context.recent.of(POD)) == 1


def test_a_pod_without_a_session_is_its_environments(office: Office) -> None:
    office.pod("p2")
    office.decided(decision(pod_uid="uid-of-p2"))
    assert office.notes.notes[0][:2] == ("Environment", "py")


def test_nobody_gets_a_name_by_claiming_one(office: Office) -> None:
    """Labels can say anything; a series for each would be without end."""
    office.pod("p2", environment="invented")
    before = requests("denied", NAMESPACE, ""), requests("denied", "", "")
    office.decided(decision(pod_uid="uid-of-p2"), decision(pod_uid="uid-of-nobody"))
    assert requests("denied", NAMESPACE, "invented") == 0
    assert requests("denied", NAMESPACE, "") == before[0] + 1
    assert requests("denied", "", "") == before[1] + 1
    assert not office.notes.notes


def test_decisions_that_are_lost_are_counted(office: Office) -> None:
    def lost() -> float:
        name = "cloister_egress_decisions_lost_total"
        return metrics.REGISTRY.get_sample_value(name) or 0.0

    before = lost()
    office.decided(lost=5)
    office.decided(lost=5, history=True)
    assert lost() == before + 5


def test_what_is_kept_is_bounded() -> None:
    recent = Recent()
    for number in range(2 * Recent.EACH):
        recent.add(POD, decision(f"h{number}.example", last=NOW + timedelta(seconds=number)))
    kept = recent.of(POD)
    assert len(kept) == Recent.EACH
    assert kept[-1].host == f"h{2 * Recent.EACH - 1}.example"
    for number in range(Recent.PODS):
        recent.add(f"pod-{number}", decision())
    assert recent.of(POD) == []
    assert recent.of("pod-0")
