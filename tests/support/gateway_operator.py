"""The operator, as far as a gateway sees it."""

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence

import grpc

from cloister_api.egress.v1 import egress_pb2, egress_pb2_grpc
from support.certificates import TestAuthority
from support.gateway_addresses import CLUSTER, TIMEOUT
from support.netns import Netns
from support.passing_on import pass_on

OPERATOR = "operator:cloister"


class Operator:
    """Tells the agent what the operator would."""

    def __init__(self, space: Netns, authority: TestAuthority, uri: str = OPERATOR) -> None:
        pair = authority.issue(uri=uri)
        self._relay = _Relay(space, 7444)
        credentials = grpc.ssl_channel_credentials(
            authority.pem, pair.private_key, pair.certificate
        )
        self.channel = grpc.secure_channel(
            f"127.0.0.1:{self._relay.port}",
            credentials,
            [
                ("grpc.ssl_target_name_override", "cloister-egress-gateway"),
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.initial_reconnect_backoff_ms", 50),
            ],
        )
        self.stub = egress_pb2_grpc.EgressGatewayStub(self.channel)
        self.term, self.revision = 1, 0

    def apply(
        self,
        sources: Mapping[str, str],
        policies: Mapping[str, Sequence[str]],
        denied: Sequence[str] = (CLUSTER + "/32",),
        version: tuple[int, int] | None = None,
    ) -> egress_pb2.ApplyResponse:
        """Tell a whole state; sources are address -> policy; see `pod_uid`."""
        self.revision += 1
        term, revision = version or (self.term, self.revision)
        request = egress_pb2.ApplyRequest(
            term=term,
            revision=revision,
            policies=[egress_pb2.Policy(id=key, hosts=each) for key, each in policies.items()],
            sources=[
                egress_pb2.Source(address=key, policy_id=each, pod_uid=pod_uid(key))
                for key, each in sources.items()
            ],
            denied_ranges=denied,
        )
        return self.stub.Apply(request, timeout=TIMEOUT, wait_for_ready=True)

    def close(self) -> None:
        """Hang up."""
        self.channel.close()
        self._relay.close()


def pod_uid(address: str) -> str:
    """The uid of the pod that has an address in these tests."""
    return "pod-" + address.replace(".", "-").replace(":", "-")


class _Relay:
    """A loopback port of ours that leads to one in a namespace."""

    def __init__(self, space: Netns, port: int) -> None:
        self._space = space
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = self._space.call(
                    lambda: socket.create_connection(("127.0.0.1", self._target), TIMEOUT)
                )
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=pass_on, args=(one, other), daemon=True).start()

    def close(self) -> None:
        """End it, and what runs through it."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
