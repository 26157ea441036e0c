"""Which of the warm pods a session gets."""

from collections import Counter
from collections.abc import Sequence

from ..api.pod import PodView


def choose(candidates: Sequence[PodView]) -> PodView | None:
    """The oldest pod of the node that has most of them: sessions spread over the nodes, and what
    has been well for longest is the least of a surprise.
    """
    idle = Counter(pod.node for pod in candidates)
    return min(candidates, key=lambda pod: (-idle[pod.node], pod.created, pod.name), default=None)
