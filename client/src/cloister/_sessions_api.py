"""Calls of the operator's Sessions API: where it is, who is calling, and what may be repeated."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from cloister_api.cancelling import being_cancelled
from cloister_api.sessions.v1 import sessions_pb2 as pb
from cloister_api.sessions.v1 import sessions_pb2_grpc

from ._channels import open_channel
from ._errors import CallError, call_error, from_rpc
from ._forward import Forward, Tunnel
from ._relay import RelayTunnel

if TYPE_CHECKING:
    from ._kube import Kube

PORT = 8443
_RETRY_SECONDS = 20.0
_CALL_SECONDS = 30.0
# The session's own calls get ten seconds to finish.
_SUSPEND_SECONDS = 45.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_Code = grpc.StatusCode
_UNKNOWN_CA = "CERTIFICATE_VERIFY_FAILED"
"""How gRPC says that nobody it trusts certified the other side."""
_NO_EFFECT = frozenset({"RATE_LIMITED", "TOO_MANY_CALLS"})
"""Reasons of refusals that had no effect, and pass by themselves."""

T = TypeVar("T")


class SessionsApi:
    """Connects at the first call.

    direct: whether the API's address is reachable from here, as it is inside the cluster.
    namespace: of the sandboxes; tokens are issued for its workers.
    """

    def __init__(
        self, kube: "Kube", *, system_namespace: str, namespace: str, direct: bool
    ) -> None:
        self._kube = kube
        self._system_namespace = system_namespace
        self._namespace = namespace
        self._direct = direct
        self._lock = asyncio.Lock()
        self._channel: grpc.aio.Channel | None = None
        self._forward: Forward | None = None
        self._closed = False

    async def create(self, request: pb.CreateSessionRequest, wait: float) -> Any:
        """Create a session; the request must carry a request_id, which makes it repeatable."""
        return await self._call(
            lambda stub, **how: stub.Create(request, **how), wait + _CALL_SECONDS
        )

    async def get(self, namespace: str, name: str, *, retry: bool = True) -> pb.Session:
        """Read a session."""
        request = pb.GetSessionRequest(namespace=namespace, name=name)
        return await self._call(lambda stub, **how: stub.Get(request, **how), retry=retry)

    async def list(self, namespace: str, environment: str) -> pb.ListSessionsResponse:
        """List sessions."""
        request = pb.ListSessionsRequest(namespace=namespace, environment=environment)
        return await self._call(lambda stub, **how: stub.List(request, **how))

    async def renew(self, namespace: str, name: str) -> pb.Credentials:
        """Get a new client certificate."""
        request = pb.RenewRequest(namespace=namespace, name=name)
        return await self._call(lambda stub, **how: stub.Renew(request, **how))

    async def suspend(self, namespace: str, name: str) -> pb.Session:
        """Delete a session's pod and keep its workspace."""
        request = pb.SuspendRequest(namespace=namespace, name=name)
        return await self._call(lambda stub, **how: stub.Suspend(request, **how), _SUSPEND_SECONDS)

    async def resume(self, request: pb.ResumeRequest, wait: float) -> Any:
        """Give a suspended session a pod again."""
        return await self._call(
            lambda stub, **how: stub.Resume(request, **how), wait + _CALL_SECONDS
        )

    async def egress(self, namespace: str, name: str) -> pb.GetEgressResponse:
        """What a session tried to reach."""
        request = pb.GetEgressRequest(namespace=namespace, name=name)
        return await self._call(lambda stub, **how: stub.GetEgress(request, **how))

    async def delete(self, namespace: str, name: str) -> None:
        """End a session."""
        request = pb.DeleteSessionRequest(namespace=namespace, name=name)
        attempts = 0

        async def delete(stub: Any, **how: Any) -> None:
            nonlocal attempts
            attempts += 1
            try:
                await stub.Delete(request, **how)
            except grpc.aio.AioRpcError as error:
                # A repetition that finds nothing means that the lost reply was a success.
                if not (attempts > 1 and error.code() is grpc.StatusCode.NOT_FOUND):
                    raise

        await self._call(delete)

    async def relay(self, namespace: str, name: str) -> Tunnel:
        """A connection to a session's exec server; raises CloisterError."""
        token = await self._kube.token(self._namespace)
        stub = sessions_pb2_grpc.SessionsStub(await self._connected())
        problem = self._forward.problem if self._forward else ""
        try:
            with self._named():
                call = stub.Relay(metadata=[("authorization", f"Bearer {token}")])
                return await RelayTunnel.open(call, namespace, name, problem)
        except CallError as error:
            if error.code is grpc.StatusCode.UNAUTHENTICATED:
                # The next attempt brings another one.
                self._kube.forget_token(self._namespace)
            raise

    async def close(self) -> None:
        """Close the connection; calls under way fail with CANCELLED."""
        self._closed = True
        await self._disconnect()

    async def _call(
        self,
        method: Callable[..., Awaitable[T]],
        timeout: float = _CALL_SECONDS,
        *,
        retry: bool = True,
    ) -> T:
        give_up = time.monotonic() + (_RETRY_SECONDS if retry else 0)
        pause, refused = _FIRST_PAUSE, False
        while True:
            channel = await self._connected()
            stub = sessions_pb2_grpc.SessionsStub(channel)
            token = await self._kube.token(self._namespace)
            try:
                with self._named():
                    return await method(
                        stub, metadata=[("authorization", f"Bearer {token}")], timeout=timeout
                    )
            except grpc.aio.AioRpcError as error:
                failed = from_rpc(error, self._forward.problem if self._forward else "")
            except CallError as error:
                failed = error
            if failed.code is grpc.StatusCode.UNAUTHENTICATED and not refused:
                # A refused token had no effect, and a new one may do.
                refused = True
                self._kube.forget_token(self._namespace)
                continue
            refused_for_now = failed.reason in _NO_EFFECT
            if failed.code is not grpc.StatusCode.UNAVAILABLE and not refused_for_now:
                raise failed
            # The server knows better than we when it is worth while; at random beyond that, so that
            # callers who were refused together do not come back together.
            hint = (failed.retry_after or 0.0) * random.uniform(1.0, 1.2)  # noqa: S311
            pause = max(pause, hint)
            if _UNKNOWN_CA in str(failed):
                # Another CA signs by now: look up which.
                await self._disconnect(channel)
            if time.monotonic() + pause > give_up:
                # The address or the CA may have changed: look them up again next time.
                await self._disconnect(channel)
                raise failed
            await asyncio.sleep(pause)
            pause = min(2 * pause, max(_LONGEST_PAUSE, hint))

    def _check_open(self) -> None:
        if self._closed:
            raise call_error(_Code.CANCELLED, "the client is closed") from None

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Raise CallError for what gRPC raises where another call has given the connection up."""
        try:
            yield
        except (asyncio.CancelledError, grpc.aio.UsageError):
            if being_cancelled():
                raise
            self._check_open()
            raise call_error(
                _Code.UNAVAILABLE, "the connection to the Sessions API broke"
            ) from None

    async def _connected(self) -> grpc.aio.Channel:
        async with self._lock:
            self._check_open()
            if self._channel is None:
                config = await self._kube.client_config(self._system_namespace)
                address = config["sessionsAddress"]
                if not self._direct:
                    where = f"the operator in namespace {self._system_namespace}"
                    self._forward = Forward(self._to_operator, where)
                    address = await self._forward.start()
                self._channel = open_channel(
                    address,
                    config["sessionsServerName"],
                    config["ca.crt"].encode(),
                    trusted=True,
                )
            return self._channel

    async def _to_operator(self) -> Tunnel:
        # Its transport is loaded by who connects already.
        from ._portforward import PodTunnel

        # Asked for at every connection, so that a replaced pod is found again.
        pod = await self._kube.operator_pod(self._system_namespace)
        return await PodTunnel.open(self._kube, self._system_namespace, pod, PORT)

    async def _disconnect(self, failed: grpc.aio.Channel | None = None) -> None:
        """Close the connection; one that `failed` unless another call has made a new one since."""
        async with self._lock:
            channel, forward = self._channel, self._forward
            if failed is not None and failed is not channel:
                return
            self._channel = self._forward = None
            if channel is not None:
                await channel.close()
            if forward is not None:
                await forward.close()
