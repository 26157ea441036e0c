"""What egress gateways decided, told to those whom it concerns: sessions, people, Prometheus."""

import logging
from typing import Final

from .. import names
from ..api import conditions
from ..api.gateway import GatewayPod
from ..api.pod import PodView
from ..logs import about
from ..metrics import EGRESS_DECISIONS_LOST, EGRESS_REQUESTS
from ..sandboxes.gateways import Decided, Decision
from .context import Context
from .events import Recorder

log = logging.getLogger(__name__)

_TOO_MANY: Final = "TooManyConnections"
_WHY: Final = {
    "HostNotAllowed": "the Environment allows no such host; add it to its "
    "spec.networking.allowedHosts if it should",
    "PortNotAllowed": "only the ports 443 and 80 are allowed",
    "NotAName": "only names of hosts are allowed, no addresses",
    "AddressDenied": "the name leads to no public address, or does not exist",
    "NameMismatch": "the TLS connection was for another name, or it was none",
    "NoState": "the gateway was starting",
    "UnknownSource": "the gateway did not know the sandbox",
    _TOO_MANY: "the sandbox has, or opens, more connections than the platform allows",
}


class Decisions:
    """controller.gateways.Listener."""

    def __init__(self, context: Context, recorder: Recorder) -> None:
        self._context = context
        self._recorder = recorder

    def decided(self, gateway: GatewayPod, decided: Decided, *, history: bool) -> None:
        """See Listener."""
        if decided.lost and not history:
            EGRESS_DECISIONS_LOST.inc(decided.lost)
            log.info("%d decisions of %s are not known", decided.lost, gateway.name)
        known = {each.uid: each for each in self._context.egress.pods()}
        for each in decided.decisions:
            pod = known.get(each.pod_uid)
            if pod is None:
                # It is gone, or nobody's: there is no name under which to count it.
                if not history:
                    self._count("", "", each)
                continue
            news = self._context.recent.add(pod.uid, each)
            if not history:
                self._count(*self._context.series(pod.namespace, pod.environment), each)
                if not each.allowed:
                    self._tell(pod, each, news=news)

    def _count(self, namespace: str, environment: str, decision: Decision) -> None:
        verdict = "allowed" if decision.allowed else "denied"
        EGRESS_REQUESTS.labels(namespace, environment, verdict).inc(decision.count)

    def _tell(self, pod: PodView, decision: Decision, *, news: bool) -> None:
        context = self._context
        where = f"{decision.host or 'what is no name'}:{decision.port}"
        if decision.reason == _TOO_MANY:
            where = "the egress gateway"
        why = _WHY.get(decision.reason, decision.reason)
        session = context.sessions.get(pod.namespace, pod.session_name) if pod.session_uid else None
        if news:
            # Once for each host: a loop in a sandbox must not fill the log.
            with about(
                namespace=pod.namespace,
                environment=pod.environment,
                session=pod.session_name,
                pod=pod.name,
            ):
                log.info("egress to %s denied: %s", where, why)
        message = f"a connection to {where} was denied: {why}"
        if session and session.metadata.uid == pod.session_uid:
            kind, subject = names.SESSION_KIND, session.metadata
        else:
            environment = context.environments.get(pod.namespace, pod.environment)
            if environment is None:
                return
            kind, subject = names.ENVIRONMENT_KIND, environment.metadata
        self._recorder.record(kind, subject, conditions.EGRESS_DENIED, message, "Warning")
