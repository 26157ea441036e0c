"""A worker in the cluster: claims sessions one after the other and prints how long each took.

bench_claims.py runs it in a pod. Environment variables: MODE (warm: the call Sessions.Create alone;
cold: until the first command has answered; bare: from making the pod POD until the API server says
that it runs), ENVIRONMENT, COUNT. Prints one line of JSON, a list of milliseconds.
"""

import asyncio
import json
import os
import time
from typing import Any

from kubernetes import client, config, watch

from cloister import aio

WHERE = {"group": "cloister.dev", "version": "v1alpha1", "plural": "environments"}
NAMESPACE = "cloister-sandboxes"
SETTLE_SECONDS = float(os.environ.get("SETTLE", "1"))


def pool_is_full(name: str) -> bool:
    """Whether the Environment has all its warm pods and no other, also none on its way out."""
    api: Any = client.CustomObjectsApi()
    found = api.get_namespaced_custom_object(namespace=NAMESPACE, name=name, **WHERE)
    pool, size = found["status"]["pool"], found["spec"]["pool"]["size"]
    if pool["ready"] != size or pool["starting"]:
        return False
    pods: Any = client.CoreV1Api()
    there = pods.list_namespaced_pod(NAMESPACE, label_selector=f"cloister.dev/environment={name}")
    return bool(len(there.items) == size)


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


def start_bare(pod: dict[str, Any], namespace: str) -> float:
    """Milliseconds until a pod runs that does nothing but start; then it is deleted."""
    api: Any = client.CoreV1Api()
    name = pod["metadata"]["name"]
    began = time.perf_counter()
    made = api.create_namespaced_pod(namespace, pod)
    events = watch.Watch().stream(
        api.list_namespaced_pod,
        namespace,
        field_selector=f"metadata.name={name}",
        resource_version=made.metadata.resource_version,
        timeout_seconds=120,
    )
    running = any(each["object"].status.phase == "Running" for each in events)
    took = (time.perf_counter() - began) * 1000
    api.delete_namespaced_pod(name, namespace, grace_period_seconds=0)
    if not running:
        raise RuntimeError(f"pod {name} does not run")
    return took


def bare(count: int) -> list[float]:
    """Milliseconds of each bare pod, the first of which does not count."""
    pod, took = json.loads(os.environ["POD"]), []
    for index in range(count + 1):
        pod["metadata"] = {"name": f"bare-{index}"}
        took.append(start_bare(pod, os.environ["NAMESPACE"]))
        time.sleep(SETTLE_SECONDS)
    return took[1:]


def main() -> None:
    config.load_incluster_config()
    mode, count = os.environ["MODE"], int(os.environ["COUNT"])
    if mode == "bare":
        found = bare(count)
    else:
        found = asyncio.run(measure(mode, os.environ["ENVIRONMENT"], count))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
