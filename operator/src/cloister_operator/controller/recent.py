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

    def __init__(self) -> None:
        self._pods: OrderedDict[str, OrderedDict[tuple[str, int, bool, str], EgressRecord]] = (
            OrderedDict()
        )

    def add(self, pod_uid: str, decision: Decision) -> bool:
        """Count a decision; whether nothing is known of one like it."""
        mine = self._pods.setdefault(pod_uid, OrderedDict())
        self._pods.move_to_end(pod_uid)
        if len(self._pods) > self.PODS:
            self._pods.popitem(last=False)
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
        return before is None

    def of(self, pod_uid: str) -> list[EgressRecord]:
        """What is known of a pod, the newest last."""
        return sorted(self._pods.get(pod_uid, {}).values(), key=lambda each: each.last)
