"""Definitions of what the operator measures; the modules that know the numbers set them.

Labels are bounded: by code (phases, kinds, verbs, reasons, methods, status codes) or by the number
of Environments, whose series go when the Environment goes (`forget_environment`). No label holds
the name of a session or of a pod.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

REGISTRY: Final = CollectorRegistry()
"""Ours alone, so that no library adds series to what the operator serves."""
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_FAST = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_CLAIM = (
    *(0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1, 2, 3, 5, 10, 20, 30, 60),
)
_ENVIRONMENT = ("namespace", "environment")
OK: Final = "ok"

# --- the operator itself -------------------------------------------------------------------------

BUILD = Gauge(
    "cloister_build_info", "Always 1; the operator's version.", ["version"], registry=REGISTRY
)
LEADER = Gauge(
    "cloister_leader", "1 in the process that leads and so decides, else 0.", registry=REGISTRY
)
CLOCK_OFFSET = Gauge(
    "cloister_clock_offset_seconds",
    "By how much the API server's clock, which counts, is ahead of this machine's.",
    registry=REGISTRY,
)
CA_EXPIRES = Gauge(
    "cloister_ca_expiry_timestamp_seconds",
    "When the CA's certificate ends, in seconds since 1970.",
    registry=REGISTRY,
)
CA_GENERATIONS = Gauge(
    "cloister_ca_generations",
    "CAs that are trusted beside the one that signs: upcoming and former ones.",
    ["generation"],
    registry=REGISTRY,
)
CA_UNTOLD = Gauge(
    "cloister_ca_untold_pods",
    "Sandboxes that the leader has yet to tell which CAs to trust.",
    registry=REGISTRY,
)
ADMISSION_ENFORCED = Gauge(
    "cloister_admission_enforced",
    "1 where the admission policies of a sandbox namespace have an effect, 0 where they have none.",
    ["namespace"],
    registry=REGISTRY,
)
LOOP_LAG_SECONDS = Histogram(
    "cloister_event_loop_lag_seconds",
    "How late the event loop ran a timer: time in which nothing else could run either.",
    buckets=_FAST,
    registry=REGISTRY,
)

# --- pools and sessions --------------------------------------------------------------------------

POOL_PODS = Gauge(
    "cloister_pool_pods",
    "Sandbox pods by Environment and state (starting, warm, claimed, failed).",
    [*_ENVIRONMENT, "state"],
    registry=REGISTRY,
)
POOL_WANTED_PODS = Gauge(
    "cloister_pool_wanted_pods",
    "Warm pods that the pool is to have.",
    _ENVIRONMENT,
    registry=REGISTRY,
)
POOL_FAILURES = Gauge(
    "cloister_pool_failed_starts",
    "Failures one after the other of the pool's new pods; 0 once one of them is warm.",
    _ENVIRONMENT,
    registry=REGISTRY,
)
ENVIRONMENT_CONDITION = Gauge(
    "cloister_environment_condition",
    "1 where the Environment's condition is True, 0 where it is False; absent while Unknown.",
    [*_ENVIRONMENT, "condition"],
    registry=REGISTRY,
)
SESSIONS = Gauge(
    "cloister_sessions",
    "Sessions by Environment and phase; those of an Environment that is not there have no name.",
    [*_ENVIRONMENT, "phase"],
    registry=REGISTRY,
)
SESSION_RUNNING_SECONDS = Counter(
    "cloister_session_running_seconds",
    "Seconds that sessions ran, as their runningSeconds count them.",
    _ENVIRONMENT,
    registry=REGISTRY,
)
SESSION_ACTIVE_SECONDS = Counter(
    "cloister_session_active_seconds",
    "Seconds in which sessions ran a tool, as their activeSeconds count them.",
    _ENVIRONMENT,
    registry=REGISTRY,
)
FAILURES = Counter(
    "cloister_failures",
    "What failed by kind (session: it ended; recovery: it lost its pod and gets another; pod: one"
    " of a pool) and reason.",
    ["kind", "reason"],
    registry=REGISTRY,
)

# --- claims --------------------------------------------------------------------------------------

CLAIMS = Counter(
    "cloister_claims",
    "Sessions that got their pod (ok), failed before, or were deleted before, by start (warm, cold,"
    " resumed; none for those that got no pod).",
    [*_ENVIRONMENT, "start", "outcome"],
    registry=REGISTRY,
)
CLAIM_SECONDS = Histogram(
    "cloister_claim_seconds",
    "From the first sight of a Session to its status Running, by start (warm, cold, resumed).",
    ["start"],
    buckets=_CLAIM,
    registry=REGISTRY,
)
CLAIM_CONFLICTS = Counter(
    "cloister_claim_conflicts",
    "Warm pods that were no more to be had when a session claimed them; it takes another.",
    registry=REGISTRY,
)

# --- the API server ------------------------------------------------------------------------------

API_WRITES = Counter(
    "cloister_api_writes",
    "Writes to the Kubernetes API by verb, resource and outcome (ok, or why not).",
    ["verb", "resource", "outcome"],
    registry=REGISTRY,
)
API_WRITE_SECONDS = Histogram(
    "cloister_api_write_seconds",
    "Duration of writes to the Kubernetes API by verb and resource.",
    ["verb", "resource"],
    buckets=_FAST,
    registry=REGISTRY,
)
WATCH_FAILURES = Counter(
    "cloister_watch_failures",
    "Lists and watches of the Kubernetes API that broke and were begun again.",
    registry=REGISTRY,
)
EVENTS = Counter(
    "cloister_events",
    "Kubernetes Events by outcome: posted, repeated (added to one that was there), dropped.",
    ["outcome"],
    registry=REGISTRY,
)

# --- egress --------------------------------------------------------------------------------------

EGRESS_REQUESTS = Counter(
    "cloister_egress_requests",
    "Connections that sandboxes asked egress gateways for, by Environment and verdict (allowed,"
    " denied); those of an Environment that is not there have no name.",
    [*_ENVIRONMENT, "verdict"],
    registry=REGISTRY,
)
EGRESS_DECISIONS_LOST = Counter(
    "cloister_egress_decisions_lost",
    "Decisions of egress gateways that the operator was not told of.",
    registry=REGISTRY,
)
EGRESS_GATEWAYS = Gauge(
    "cloister_egress_gateways",
    "Egress gateways by state: ready (and up to date), behind (they do not hold the newest state),"
    " starting (not Ready).",
    ["state"],
    registry=REGISTRY,
)
GIT_FETCHES = Counter(
    "cloister_git_fetches",
    "Looks at git repositories by outcome: ok (files were fetched), unchanged, or why it failed.",
    ["outcome"],
    registry=REGISTRY,
)
GIT_FETCH_SECONDS = Histogram(
    "cloister_git_fetch_seconds",
    "Duration of looks at git repositories, fetching included.",
    buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120),
    registry=REGISTRY,
)
EGRESS_PUSHES = Counter(
    "cloister_egress_pushes",
    "States sent to egress gateways by outcome (ok, or why not).",
    ["outcome"],
    registry=REGISTRY,
)
EGRESS_PUSH_SECONDS = Histogram(
    "cloister_egress_push_seconds",
    "From sending a state to an egress gateway to its acknowledgement.",
    buckets=_FAST,
    registry=REGISTRY,
)
EGRESS_UNREVOKED = Counter(
    "cloister_egress_unrevoked",
    "Pods that were deleted though an egress gateway had not confirmed that it forgot them; no"
    " other pod gets in under such an address before it has.",
    registry=REGISTRY,
)

# --- the work queue ------------------------------------------------------------------------------

QUEUE_DEPTH = Gauge("cloister_queue_depth", "Keys that wait for a reconcile.", registry=REGISTRY)
QUEUE_AGE_SECONDS = Gauge(
    "cloister_queue_age_seconds",
    "How long the key has waited that waits longest for a reconcile; 0 when none does.",
    registry=REGISTRY,
)
QUEUE_WAIT_SECONDS = Histogram(
    "cloister_queue_wait_seconds",
    "How long keys waited for their reconcile.",
    buckets=_FAST,
    registry=REGISTRY,
)
RECONCILES = Counter(
    "cloister_reconciles",
    "Reconciles by kind and outcome; each that is not ok is repeated.",
    ["kind", "outcome"],
    registry=REGISTRY,
)
RECONCILE_SECONDS = Histogram(
    "cloister_reconcile_seconds",
    "Duration of one reconcile by kind.",
    ["kind"],
    buckets=_FAST,
    registry=REGISTRY,
)

# --- the Sessions API ----------------------------------------------------------------------------

SESSIONS_API_CALLS = Counter(
    "cloister_sessions_api_calls",
    "Calls of the Sessions API by method and gRPC status code.",
    ["method", "code"],
    registry=REGISTRY,
)
SESSIONS_API_FORWARDED = Counter(
    "cloister_sessions_api_forwarded",
    "Calls of the Sessions API that reached a process which does not lead, by method and what the"
    " leader did: answered, or lost (it did not answer), or no_leader (there was none to ask).",
    ["method", "outcome"],
    registry=REGISTRY,
)
SESSIONS_API_ENDED = Counter(
    "cloister_sessions_api_connections_ended",
    "Connections to the Sessions API that were ended, by why: no_token (none that is valid was"
    " shown in time), one_address (too many of one address had shown none), or crowded (whoever"
    " had most lost some).",
    ["why"],
    registry=REGISTRY,
)
SESSIONS_API_SECONDS = Histogram(
    "cloister_sessions_api_seconds",
    "Duration of calls of the Sessions API by method; Watch lasts as long as its caller wants.",
    ["method"],
    buckets=_CLAIM,
    registry=REGISTRY,
)


def outcome_of(error: BaseException) -> str:
    """What a label says of an error: the word that its class has for it."""
    return str(getattr(error, "outcome", "error"))


@contextmanager
def api_write(verb: str, resource: str) -> Iterator[None]:
    """Measure one write to the Kubernetes API."""
    return _measured(API_WRITES, API_WRITE_SECONDS, verb, resource)


@contextmanager
def reconcile(kind: str) -> Iterator[None]:
    """Measure one reconcile."""
    return _measured(RECONCILES, RECONCILE_SECONDS, kind)


def _measured(count: Counter, seconds: Histogram, *labels: str) -> Iterator[None]:
    began = time.perf_counter()
    # Of what is cancelled nobody knows the end.
    outcome = "lost"
    try:
        yield
        outcome = OK
    except Exception as error:
        outcome = outcome_of(error)
        raise
    finally:
        seconds.labels(*labels).observe(time.perf_counter() - began)
        count.labels(*labels, outcome).inc()


def begin(failures: Mapping[str, Iterable[str]]) -> None:
    """Let counters be 0 whose first step somebody must see: Prometheus knows of no increase when
    the first value that it reads is already more.

    `failures`: by kind, the reasons that `FAILURES` is known to count.
    """
    for kind, reasons in failures.items():
        for reason in reasons:
            FAILURES.labels(kind, reason)
    for outcome in ("posted", "repeated", "dropped"):
        EVENTS.labels(outcome)
    for why in ("no_token", "one_address", "crowded"):
        SESSIONS_API_ENDED.labels(why)


def begin_environment(namespace: str, environment: str) -> None:
    """The same for the counters of an Environment."""
    of = (namespace, environment)
    for start in ("warm", "cold", "resumed"):
        CLAIMS.labels(*of, start, OK)
    for outcome in ("failed", "deleted"):
        CLAIMS.labels(*of, "none", outcome)
    for verdict in ("allowed", "denied"):
        EGRESS_REQUESTS.labels(*of, verdict)
    SESSION_RUNNING_SECONDS.labels(*of)
    SESSION_ACTIVE_SECONDS.labels(*of)


def forget_gauges() -> None:
    """Remove what only the leader says."""
    for metric in (
        *(POOL_PODS, POOL_WANTED_PODS, POOL_FAILURES, ENVIRONMENT_CONDITION, SESSIONS),
        *(EGRESS_GATEWAYS, ADMISSION_ENFORCED),
    ):
        metric.clear()
    for figure in (QUEUE_DEPTH, QUEUE_AGE_SECONDS, CA_UNTOLD):
        figure.set(0)


def forget_environment(namespace: str, environment: str) -> None:
    """Remove the series of an Environment that is gone."""
    of = {"namespace": namespace, "environment": environment}
    for metric in (
        *(POOL_PODS, POOL_WANTED_PODS, POOL_FAILURES, ENVIRONMENT_CONDITION, SESSIONS),
        *(SESSION_RUNNING_SECONDS, SESSION_ACTIVE_SECONDS, CLAIMS, EGRESS_REQUESTS),
    ):
        metric.remove_by_labels(of)
