"""What the API server itself takes for the writes of a claim, with nobody else calling it.

One connection, the writes that a claim cannot do without and in their shape: a Session is created,
a pod of the pool's own form is patched (`test` and all), the Session's status is written.
"""

import base64
import http.client
import json
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.results import percentile

from target import SANDBOX_NAMESPACE, SYSTEM_NAMESPACE, Target, TargetError

OPERATOR = "app.kubernetes.io/component=operator"
NAMESPACE = "cloister-bench"
JSON_PATCH, MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"
Json = dict[str, Any]
_GIVEN = ("nodeName", "serviceAccount", "serviceAccountName")
"""What the API server and the scheduler wrote."""


class Server:
    """The API server over one connection."""

    def __init__(self, kubeconfig: Path) -> None:
        found = json.loads(kubeconfig.read_text())
        cluster, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
        with tempfile.TemporaryDirectory() as folder:
            certificate = self._file(folder, user["client-certificate-data"], "tls.crt")
            key = self._file(folder, user["client-key-data"], "tls.key")
            ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
            context = ssl.create_default_context(cadata=ca)
            context.load_cert_chain(certificate, key)
        self._connection = http.client.HTTPSConnection(
            urlsplit(cluster["server"]).netloc, context=context
        )

    @staticmethod
    def _file(folder: str, content: str, name: str) -> str:
        path = Path(folder) / name
        path.write_bytes(base64.b64decode(content))
        return str(path)

    def call(
        self, method: str, path: str, body: Any = None, kind: str = "application/json"
    ) -> tuple[float, Json]:
        """Milliseconds and the answer."""
        began = time.perf_counter()
        data = json.dumps(body) if body is not None else None
        self._connection.request(method, path, data, {"Content-Type": kind})
        answer = self._connection.getresponse()
        content = answer.read()
        took = (time.perf_counter() - began) * 1000
        if answer.status >= 400 and not (method == "DELETE" and answer.status == 404):
            raise TargetError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return took, json.loads(content)


def claim(server: Server, spec: Json, name: str) -> dict[str, float]:
    """The writes of one claim; what they need is made before, and removed after."""
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    sessions = f"/apis/cloister.dev/v1alpha1/namespaces/{NAMESPACE}/sessions"
    labels = {"cloister.dev/state": "warm", "app.kubernetes.io/managed-by": "bench"}
    _, pod = server.call("POST", pods, {"metadata": {"name": name, "labels": labels}, "spec": spec})
    # As the operator does when a pod becomes warm.
    bare = [{"op": "replace", "path": "/metadata/managedFields", "value": [{}]}]
    server.call("PATCH", f"{pods}/{name}", bare, JSON_PATCH)
    body = {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "Session",
        "metadata": {"name": name, "annotations": {"cloister.dev/request": "0" * 64}},
        "spec": {"environmentName": "none", "env": [], "files": []},
    }
    took = {}
    took["create session"], session = server.call("POST", sessions, body)
    state, owner = "/metadata/labels/cloister.dev~1state", session["metadata"]
    reference = {"apiVersion": body["apiVersion"], "kind": "Session", "name": name}
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": pod["metadata"]["uid"]},
        {"op": "test", "path": state, "value": "warm"},
        {"op": "replace", "path": state, "value": "claimed"},
        {"op": "add", "path": "/metadata/labels/cloister.dev~1session", "value": owner["uid"]},
        {
            "op": "add",
            "path": "/metadata/ownerReferences",
            "value": [{**reference, "uid": owner["uid"], "controller": True}],
        },
    ]
    took["patch pod"], _ = server.call("PATCH", f"{pods}/{name}", patch, JSON_PATCH)
    now = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True", "reason": "Claimed", "message": f"pod {name}"}
    status = {
        "phase": "Running",
        "reason": "Claimed",
        "podName": name,
        "podUID": pod["metadata"]["uid"],
        "endpoint": "10.66.0.1:7443",
        "serverName": f"session-{owner['uid']}.sandbox.cloister.dev",
        "recipeHash": "0" * 10,
        "startedAt": now,
        "runningSince": now,
        "lastActivityTime": now,
        "observedGeneration": 1,
        "conditions": [{**ready, "lastTransitionTime": now, "observedGeneration": 1}],
    }
    patched = {"metadata": {"resourceVersion": owner["resourceVersion"]}, "status": status}
    where = f"{sessions}/{name}"
    took["write status"], _ = server.call("PATCH", f"{where}/status", patched, MERGE_PATCH)
    server.call("DELETE", where)
    server.call("DELETE", f"{pods}/{name}", {"gracePeriodSeconds": 0})
    return took


def measure(kubeconfig: Path, pod: Json, count: int) -> dict[str, list[float]]:
    """Milliseconds of each of `count` claims' writes."""
    server = Server(kubeconfig)
    # Nobody is to schedule it.
    spec = {key: each for key, each in pod["spec"].items() if key not in _GIVEN}
    spec["schedulerName"] = "none"
    made = [claim(server, spec, f"floor-{each}") for each in range(count)]
    return {key: [each[key] for each in made] for key in made[0]}


def floor(target: Target, count: int = 100) -> dict[str, float]:
    """Medians of a claim's writes while no operator runs, in milliseconds; needs a warm pod, whose
    shape the patched one has, and the namespace of the benchmarks. Raises TargetError.
    """
    where = ("-n", SANDBOX_NAMESPACE, "-o")
    name = target.kubectl("get", "pods", *where, "name", "-l", "cloister.dev/state=warm").split()[0]
    pod = json.loads(target.kubectl("get", name, *where, "json"))
    deployment = ("deployment/cloister-operator", "-n", SYSTEM_NAMESPACE)
    replicas = target.kubectl("get", *deployment, "-o", "jsonpath={.spec.replicas}")
    target.kubectl("scale", *deployment, "--replicas=0")
    try:
        target.kubectl(
            *("wait", "pods", "-l", OPERATOR, "-n", SYSTEM_NAMESPACE),
            *("--for=delete", "--timeout=60s"),
        )
        found = measure(Path(str(target.kubeconfig)), pod, count)
    finally:
        target.kubectl("scale", *deployment, f"--replicas={replicas}")
    together = [sum(each) for each in zip(*found.values(), strict=True)]
    # The caller is answered before the status is written.
    waited = [sum(each) for each in zip(*list(found.values())[:2], strict=True)]
    return {key: round(percentile(values, 0.5), 2) for key, values in found.items()} | {
        "p50_ms": round(percentile(together, 0.5), 1),
        "p99_ms": round(percentile(together, 0.99), 1),
        "waited_p50_ms": round(percentile(waited, 0.5), 1),
        "waited_p99_ms": round(percentile(waited, 0.99), 1),
    }
