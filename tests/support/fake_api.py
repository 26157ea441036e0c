"""An API server in memory, as faithful as the operator's decisions need, and hooks to break it.

`FakeCluster` is the server and the parts of a cluster that act by themselves: the garbage
collector and a kubelet. A `Connection` is one operator's way to it; its faults lose answers or
kill the operator at a chosen write, and its watches can be held and cut. Who wants to know of every
write as the server accepts it puts itself in `listeners`. tests/e2e/test_fake_api.py compares the
answers with those of a real API server.
"""

from support.fake_cluster import FakeCluster, Write
from support.fake_connection import OPERATOR, Connection, Fault
from support.fake_storage import Change

__all__ = ["OPERATOR", "Change", "Connection", "FakeCluster", "Fault", "Write"]
