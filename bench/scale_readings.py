"""What the operator says of itself while claims are made beside many pods, and what follows."""

import re
from dataclasses import dataclass
from typing import Any

from bench.results import percentile

WINDOW = 10.0
"""Seconds of which percentiles are told together."""
Claims = list[tuple[float, float, str]]
"""Of each claim: the second in which it was due, its milliseconds, and its error or nothing."""


@dataclass
class Reading:
    """What the operator said of itself at one moment."""

    at: float
    metrics: dict[str, float]

    def value(self, name: str) -> float:
        """One metric; 0 when it is not there yet."""
        return self.metrics.get(name, 0.0)

    def total(self, pattern: str) -> float:
        """The sum of all series whose whole name matches."""
        return sum(value for name, value in self.metrics.items() if re.fullmatch(pattern, name))


@dataclass
class Part:
    """One part of the run: its claims, and what the operator did meanwhile."""

    claims: Claims
    before: Reading
    after: Reading

    @property
    def failed(self) -> list[str]:
        return [error for _, _, error in self.claims if error]

    def ms(self, share: float) -> float:
        """A percentile of those that succeeded."""
        return round(percentile([ms for _, ms, error in self.claims if not error], share), 1)

    def delta(self, pattern: str) -> float:
        return self.after.total(pattern) - self.before.total(pattern)

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of the operator's processor time per claim, its refill included."""
        return self.delta("process_cpu_seconds_total") * 1000 / max(1, len(self.claims))

    @property
    def warm_ratio(self) -> float:
        """Of the claims that succeeded, those that found a warm pod."""
        started = r'cloister_claim_seconds_count\{.*start="(warm|cold)".*\}'
        warm = r'cloister_claim_seconds_count\{.*start="warm".*\}'
        return self.delta(warm) / max(1.0, self.delta(started))

    def lag_ms(self, share: float) -> float:
        """A percentile of the event loop's lag, by the upper bound of its bucket."""
        name = re.compile(r'cloister_event_loop_lag_seconds_bucket\{le="([^"]+)"\}')
        buckets = []
        for metric, value in self.after.metrics.items():
            found = name.fullmatch(metric)
            if found:
                buckets.append((float(found[1]), value - self.before.value(metric)))
        buckets.sort()
        wanted = share * buckets[-1][1] if buckets else 0.0
        return next((bound * 1000 for bound, count in buckets if count >= wanted), 0.0)

    def figures(self) -> dict[str, Any]:
        """For the report."""
        seconds = max(0.001, self.after.at - self.before.at)
        writes = self.delta(r"cloister_api_write_seconds_count\{.*\}")
        return {
            "claims": len(self.claims),
            "failed": len(self.failed),
            "p50_ms": self.ms(0.5),
            "p90_ms": self.ms(0.9),
            "p99_ms": self.ms(0.99),
            "warm_ratio": round(self.warm_ratio, 4),
            "writes_per_claim_with_refill": round(writes / max(1, len(self.claims)), 2),
            "operator_cpu_ms_per_claim": round(self.cpu_ms, 2),
            "operator_cores": round(self.delta("process_cpu_seconds_total") / seconds, 3),
            "operator_rss_mb": rss(self.after),
            "loop_lag_p99_ms": self.lag_ms(0.99),
            "errors": sorted(set(self.failed))[:5],
        }

    def windows(self) -> list[dict[str, float]]:
        """Percentiles of each ten seconds, by when the claims were due."""
        found: dict[int, list[float]] = {}
        for at, ms, _ in self.claims:
            found.setdefault(int(at // WINDOW), []).append(ms)
        return [
            {"second": index * WINDOW, "claims": len(values)}
            | {f"p{int(100 * p)}_ms": round(percentile(values, p), 1) for p in (0.5, 0.9, 0.99)}
            for index, values in sorted(found.items())
        ]


def rss(reading: Reading) -> float:
    return round(reading.value("process_resident_memory_bytes") / 1e6, 1)
