"""Definitions of what the operator measures; the modules that know the numbers set them.

Labels are bounded: by code (phases, kinds, methods, status codes) or by the number of
Environments, whose series go when the Environment goes (`forget_environment`).
"""

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

SESSIONS = Gauge("cloister_sessions", "Sessions by phase.", ["phase"], registry=REGISTRY)
POOL_PODS = Gauge(
    "cloister_pool_pods",
    "Sandbox pods by Environment and state (starting, warm, claimed, failed).",
    ["namespace", "environment", "state"],
    registry=REGISTRY,
)
CLAIM_SECONDS = Histogram(
    "cloister_claim_seconds",
    "From the first sight of a Session to its status Running, by start (warm, cold).",
    ["start"],
    buckets=_FAST,
    registry=REGISTRY,
)
API_WRITE_SECONDS = Histogram(
    "cloister_api_write_seconds",
    "Duration of writes to the Kubernetes API by verb and resource.",
    ["verb", "resource"],
    buckets=_FAST,
    registry=REGISTRY,
)
QUEUE_DEPTH = Gauge("cloister_queue_depth", "Keys that wait for a reconcile.", registry=REGISTRY)
RECONCILE_SECONDS = Histogram(
    "cloister_reconcile_seconds",
    "Duration of one reconcile by kind.",
    ["kind"],
    buckets=_FAST,
    registry=REGISTRY,
)
RECONCILE_ERRORS = Counter(
    "cloister_reconcile_errors",
    "Reconciles that ended in an error and will be repeated, by kind.",
    ["kind"],
    registry=REGISTRY,
)
SESSIONS_API_CALLS = Counter(
    "cloister_sessions_api_calls",
    "Calls of the Sessions API by method and gRPC status code.",
    ["method", "code"],
    registry=REGISTRY,
)
SESSIONS_API_SECONDS = Histogram(
    "cloister_sessions_api_seconds",
    "Duration of calls of the Sessions API by method; Watch lasts as long as its caller wants.",
    ["method"],
    buckets=_FAST,
    registry=REGISTRY,
)
LOOP_LAG_SECONDS = Histogram(
    "cloister_event_loop_lag_seconds",
    "How late the event loop ran a timer: time in which nothing else could run either.",
    buckets=_FAST,
    registry=REGISTRY,
)


def forget_environment(namespace: str, environment: str) -> None:
    """Remove the series of an Environment that is gone."""
    POOL_PODS.remove_by_labels({"namespace": namespace, "environment": environment})
