"""A worker in the cluster: claims sessions one after the other and prints how long each took.

bench_claims.py runs it in a pod. Environment variables: MODE (warm: the call Sessions.Create alone;
cold: until the first command has answered), ENVIRONMENT, COUNT. Prints one line of JSON, a list of
milliseconds.
"""

import asyncio
import json
import os
import time
from typing import Any

from kubernetes import client, config

from cloister import aio

WHERE = {"group": "cloister.dev", "version": "v1alpha1", "plural": "environments"}
NAMESPACE = "cloister-sandboxes"
SETTLE_SECONDS = float(os.environ.get("SETTLE", "1"))


def pool_is_full(name: str) -> bool:
    """Whether the Environment has all its warm pods, and nothing is under way."""
    api: Any = client.CustomObjectsApi()
    found = api.get_namespaced_custom_object(namespace=NAMESPACE, name=name, **WHERE)
    pool = found["status"]["pool"]
    return bool(pool["ready"] == found["spec"]["pool"]["size"] and not pool["starting"])


def wait_full(name: str) -> None:
    """Wait until the pool is full, and the last session's pod has been taken down.

    The next claim must be warm, and not share the cores with its predecessor's end.
    """
    while not pool_is_full(name):
        time.sleep(0.05)
    time.sleep(SETTLE_SECONDS)


async def measure(mode: str, environment: str, count: int) -> list[float]:
    """Milliseconds of each claim."""
    took = []
    async with aio.AsyncClient(namespace=NAMESPACE) as worker:
        # The first call opens connections and fills caches, which a worker pays once.
        first = await worker.create_session(environment)
        await first.close()
        for _ in range(count):
            await asyncio.to_thread(wait_full, environment)
            began = time.perf_counter()
            session = await worker.create_session(environment)
            if mode == "cold":
                answer = await session.bash("echo first")
                if answer.text != "first":
                    raise RuntimeError(f"the first command answered {answer.text!r}")
            took.append((time.perf_counter() - began) * 1000)
            await session.close()
    return took


def main() -> None:
    config.load_incluster_config()
    mode, environment = os.environ["MODE"], os.environ["ENVIRONMENT"]
    print(json.dumps(asyncio.run(measure(mode, environment, int(os.environ["COUNT"])))))


if __name__ == "__main__":
    main()
