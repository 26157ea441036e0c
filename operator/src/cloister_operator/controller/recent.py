"""The newest decisions of egress gateways about each pod.

They are lost at a restart; gateways tell again what they have kept.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Final

from ..api.backend import EgressRecord
from ..sandboxes.gateways import Decision


class Recent:
    """The newest decisions about each pod, bounded."""

    PODS: Final = 2000
    EACH: Final = 200
    NEWS: Final = 20
    """Denials of one pod in a minute that are news: it may ask for ever other hosts."""

    def __init__(self) -> None:
        self._pods: OrderedDict[str, OrderedDict[tuple[str, int, bool, str], EgressRecord]] = (
            OrderedDict()
        )
        self._news: dict[str, tuple[int, int]] = {}
        """By pod, the minute, and how many there were in it."""

    def add(self, pod_uid: str, decision: Decision) -> bool:
        """Count a decision; whether it is a denial that is news: nothing is known of one like it,
        and there were few of which that was so lately.
        """
        mine = self._pods.setdefault(pod_uid, OrderedDict())
        self._pods.move_to_end(pod_uid)
        if len(self._pods) > self.PODS:
            gone, _ = self._pods.popitem(last=False)
            self._news.pop(gone, None)
        key = (decision.host, decision.port, decision.allowed, decision.reason)
        before = mine.get(key)
        new: EgressRecord = decision
        if before:
            new = replace(
                new,
                count=before.count + new.count,
                first=min(before.first, new.first),
                last=max(before.last, new.last),
                bytes_sent=before.bytes_sent + new.bytes_sent,
                bytes_received=before.bytes_received + new.bytes_received,
            )
        mine[key] = new
        mine.move_to_end(key)
        if len(mine) > self.EACH:
            mine.popitem(last=False)
        if before or decision.allowed:
            return False
        minute = int(decision.last.timestamp()) // 60
        known, count = self._news.get(pod_uid, (minute, 0))
        count = count + 1 if known == minute else 1
        self._news[pod_uid] = minute, count
        return count <= self.NEWS

    def of(self, pod_uid: str) -> list[EgressRecord]:
        """What is known of a pod, the newest last."""
        return sorted(self._pods.get(pod_uid, {}).values(), key=lambda each: each.last)
