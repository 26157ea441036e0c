"""The callers of bench_scale.py: one process that claims sessions, and ends them again.

Reads one JSON object a line and answers each with one: first where to call (address, ca, token,
namespace, environments), then what to do.

    {"do": "one", "count": 50}                 claims one after the other
    {"do": "keep", "count": 2000, "at_once": 16}   claims whose sessions stay
    {"do": "burst", "count": 300}              claims all at the same moment
    {"do": "poisson", "rate": 50, "seconds": 300, "hold": 5}   arrivals that wait for nobody
    {"do": "serve"}                            until one claim succeeds

An answer is a list of [seconds since the start, milliseconds, error]. The clock of a claim starts
when it was due, not when the process got round to it: a server that stalls delays nobody's count.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable
from typing import Any, NamedTuple

import grpc

from cloister_api.sessions.v1 import sessions_pb2, sessions_pb2_grpc

SERVER_NAME = "sessions.cloister.dev"
CALL_SECONDS = 60.0


class Claim(NamedTuple):
    """One claim, as it is reported."""

    at: float
    ms: float
    error: str


class Callers:
    """Workers of one token, on a few connections."""

    def __init__(self, where: dict[str, Any]) -> None:
        self._namespace = where["namespace"]
        self._environments = where["environments"]
        self._random = random.Random(1)
        self._metadata = (("authorization", f"Bearer {where['token']}"),)
        credentials = grpc.ssl_channel_credentials(where["ca"].encode())
        self._channels = [
            grpc.aio.secure_channel(
                where["address"],
                credentials,
                options=[
                    ("grpc.ssl_target_name_override", SERVER_NAME),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.max_reconnect_backoff_ms", 200),
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.enable_http_proxy", 0),
                ],
            )
            for _ in range(4)
        ]
        self._stubs = [sessions_pb2_grpc.SessionsStub(each) for each in self._channels]
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, what: dict[str, Any]) -> list[Claim]:
        """Carry out one line."""
        match what["do"]:
            case "one":
                return await self._one(what["count"])
            case "keep":
                return await self._keep(what["count"], what["at_once"])
            case "burst":
                began = time.perf_counter()
                claims = (self._claim(began, began, 0.0) for _ in range(what["count"]))
                return await self._all(claims)
            case "poisson":
                return await self._poisson(what["rate"], what["seconds"], what["hold"])
            case "serve":
                return await self._serve()
        raise ValueError(what["do"])

    async def _one(self, count: int) -> list[Claim]:
        began, made = time.perf_counter(), []
        for _ in range(count):
            made.append(await self._claim(began, time.perf_counter(), 0.0))
            # The refill, and the end of the session before, are not the next claim's.
            await asyncio.sleep(0.2)
        return made

    async def _keep(self, count: int, at_once: int) -> list[Claim]:
        began, left = time.perf_counter(), iter(range(count))

        async def caller() -> list[Claim]:
            return [await self._claim(began, time.perf_counter(), None) for _ in left]

        parts = await asyncio.gather(*(caller() for _ in range(at_once)))
        return [each for part in parts for each in part]

    async def _poisson(self, rate: float, seconds: float, hold: float) -> list[Claim]:
        began, due, tasks = time.perf_counter(), 0.0, []
        while (due := due + self._random.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._claim(began, began + due, hold)))
        return await self._all(tasks)

    async def _serve(self) -> list[Claim]:
        began = time.perf_counter()
        while True:
            made = await self._claim(began, began, 0.0, seconds=5.0)
            if not made.error:
                return [made]
            await asyncio.sleep(0.05)

    async def _all(self, claims: Any) -> list[Claim]:
        made: list[Claim] = await asyncio.gather(*claims)
        if self._ending:
            await asyncio.wait(self._ending)
        return made

    async def _claim(
        self, began: float, due: float, hold: float | None, seconds: float = CALL_SECONDS
    ) -> Claim:
        """Claim a session; end it `hold` seconds later, if at all."""
        stub = self._random.choice(self._stubs)
        request = sessions_pb2.CreateSessionRequest(
            namespace=self._namespace, environment=self._random.choice(self._environments)
        )
        error = name = ""
        try:
            answer = await stub.Create(request, metadata=self._metadata, timeout=seconds)
            name = answer.session.name
        except grpc.aio.AioRpcError as failed:
            error = f"{failed.code().name}: {failed.details()}"[:200]
        claim = Claim(due - began, (time.perf_counter() - due) * 1000, error)
        if name and hold is not None:
            self._start(self._end(stub, name, hold))
        return claim

    async def _end(self, stub: Any, name: str, hold: float) -> None:
        await asyncio.sleep(hold)
        request = sessions_pb2.DeleteSessionRequest(namespace=self._namespace, name=name)
        for _ in range(5):
            try:
                await stub.Delete(request, metadata=self._metadata, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as failed:
                if failed.code() is grpc.StatusCode.NOT_FOUND:
                    return
                await asyncio.sleep(1.0)
            else:
                return

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def main() -> None:
    callers = Callers(json.loads(await asyncio.to_thread(sys.stdin.readline)))
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await callers.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
