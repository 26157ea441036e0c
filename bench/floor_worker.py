"""The API server's part of a claim alone: one creation and two patches, over one connection.

bench_claims.py runs it in a pod that may make and change ConfigMaps in its own namespace. COUNT is
how often; prints one line of JSON, a list of milliseconds per three writes.
"""

import json
import os
import time
from typing import Any

from kubernetes import client, config

NAMESPACE = "cloister-bench"
JSON_PATCH = "application/json-patch+json"


def claim_like(api: Any, name: str) -> float:
    """Milliseconds of the three writes."""
    body = {"metadata": {"name": name, "labels": {"state": "warm"}}, "data": {"a": "x" * 1000}}
    patch = [
        {"op": "test", "path": "/metadata/labels/state", "value": "warm"},
        {"op": "replace", "path": "/metadata/labels/state", "value": "claimed"},
    ]
    status = [{"op": "replace", "path": "/data/a", "value": "y" * 1000}]
    began = time.perf_counter()
    api.create_namespaced_config_map(namespace=NAMESPACE, body=body, _preload_content=False)
    for change in (patch, status):
        api.patch_namespaced_config_map(
            name=name,
            namespace=NAMESPACE,
            body=change,
            _content_type=JSON_PATCH,
            _preload_content=False,
        )
    took = (time.perf_counter() - began) * 1000
    api.delete_namespaced_config_map(name=name, namespace=NAMESPACE, _preload_content=False)
    return took


def main() -> None:
    config.load_incluster_config()
    api = client.CoreV1Api()
    count = int(os.environ["COUNT"])
    # The first one opens the connection.
    print(json.dumps([claim_like(api, f"floor-{index}") for index in range(count + 1)][1:]))


if __name__ == "__main__":
    main()
