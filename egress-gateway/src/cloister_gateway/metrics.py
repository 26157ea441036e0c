"""The gateway's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge

REGISTRY = CollectorRegistry(auto_describe=True)

DECISIONS = Counter(
    "cloister_gateway_decisions",
    "Requests that were decided, by verdict (allowed, denied) and reason.",
    ["verdict", "reason"],
    registry=REGISTRY,
)
BYTES = Counter(
    "cloister_gateway_bytes",
    "Bytes of connections that ended, by direction (sent, received) as a sandbox sees it.",
    ["direction"],
    registry=REGISTRY,
)
CUT = Counter(
    "cloister_gateway_connections_cut",
    "Connections that ended because their source lost what it was allowed.",
    registry=REGISTRY,
)
LOST = Counter(
    "cloister_gateway_decisions_lost",
    "Decisions that no report tells of, because there were too many.",
    registry=REGISTRY,
)
UNREAD = Counter(
    "cloister_gateway_connections_unread",
    "Connections that ended because much waited on them that their source did not take.",
    registry=REGISTRY,
)
SOURCES = Gauge("cloister_gateway_sources", "Pods that may use the gateway.", registry=REGISTRY)
REVISION = Gauge(
    "cloister_gateway_revision", "Revision of the state that is held.", registry=REGISTRY
)
READY = Gauge(
    "cloister_gateway_ready",
    "1 while the gateway's part answers, by part (front, names, sni, by-name, state).",
    ["part"],
    registry=REGISTRY,
)
