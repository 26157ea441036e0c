"""What there is to attack inside the cluster, by address."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cloister
from support.cluster import SANDBOX_IMAGE, SANDBOXES, SYSTEM, apply, get, kubectl, listing

JSON = dict[str, Any]
BYSTANDER = "bystander"
HOST_PORT = 18080
DNS_SERVICE = "10.96.0.10"
BEHAVIOUR = """
import http.server, socket, threading
def echo():
    held = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); held.bind(("::", 53))
    while True:
        data, sender = held.recvfrom(4096); held.sendto(data, sender)
threading.Thread(target=echo, daemon=True).start()
class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Six(("::", 8000), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@dataclass(frozen=True)
class Targets:
    """Addresses of the cluster's parts."""

    node: str
    node6: str
    """The node's link-local address towards its pods."""
    bridge: str
    """The node's address towards its pods."""
    api: str
    """The API server's Service."""
    operator: str
    sessions: str
    """The Sessions API's Service."""
    bystander: str
    """A pod without any policy: HTTP at 8000, echoes at UDP 53."""
    bystander6: str
    service: str
    """The bystander's Service, at the ports 80 and 53."""
    node_port: int
    victim: str
    """Another sandbox."""
    victim6: str
    gateways: tuple[str, ...] = ()
    gateway: str = ""
    """The egress gateway's Service."""


def find(victim: cloister.Session, holder: int) -> Targets:
    """Look everything up."""
    node = listing("nodes", namespace="default")[0]
    addresses = {each["type"]: each["address"] for each in node["status"]["addresses"]}
    service = _get("service", BYSTANDER, "default")
    links = json.loads(_on_node(holder, "ip", "-json", "address", "show", "cni0"))[0]["addr_info"]
    gateways = [
        each
        for each in listing("pods", "app.kubernetes.io/component=egress-gateway", SYSTEM)
        # Those of before drain for a while after an upgrade, and then nothing is there.
        if "deletionTimestamp" not in each["metadata"]
    ]
    front = get("service", "cloister-egress-gateway", SYSTEM)
    return Targets(
        node=addresses["InternalIP"],
        node6=next(each["local"] for each in links if each["family"] == "inet6"),
        bridge=next(each["local"] for each in links if each["family"] == "inet"),
        api=_get("service", "kubernetes", "default")["spec"]["clusterIP"],
        operator=listing("pods", "app.kubernetes.io/component=operator", SYSTEM)[0]["status"][
            "podIP"
        ],
        sessions=_get("service", "cloister", SYSTEM)["spec"]["clusterIP"],
        bystander=_get("pod", BYSTANDER, "default")["status"]["podIP"],
        bystander6=_link_local(
            kubectl("exec", BYSTANDER, "-n", "default", "--", "cat", "/proc/net/if_inet6").out
        ),
        service=service["spec"]["clusterIP"],
        node_port=service["spec"]["ports"][0]["nodePort"],
        victim=_get("pod", victim.pod_name, SANDBOXES)["status"]["podIP"],
        victim6=_link_local(victim.bash("cat /proc/net/if_inet6").text),
        gateways=tuple(each["status"]["podIP"] for each in gateways),
        gateway=front["spec"]["clusterIP"] if front else "",
    )


@contextmanager
def bystander() -> Iterator[None]:
    """An ordinary pod that serves, with a Service of every kind in front of it."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": BYSTANDER, "namespace": "default", "labels": {"app": BYSTANDER}},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": SANDBOX_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", BEHAVIOUR],
                    "workingDir": "/usr",
                    "ports": [{"containerPort": 8000, "hostPort": HOST_PORT}],
                    "securityContext": {"runAsUser": 0},
                }
            ],
            "terminationGracePeriodSeconds": 0,
        },
    }
    ports = [
        {"name": "http", "port": 80, "targetPort": 8000, "protocol": "TCP"},
        {"name": "dns", "port": 53, "targetPort": 53, "protocol": "UDP"},
    ]
    every = _service(BYSTANDER, {"type": "NodePort", "ports": ports})
    # Where clusters have their DNS server.
    dns = _service(f"{BYSTANDER}-dns", {"clusterIP": DNS_SERVICE, "ports": ports[1:]})
    apply(pod, every, dns)
    try:
        wait = "--for=condition=Ready", "--timeout=60s"
        kubectl("wait", "pod", BYSTANDER, "-n", "default", *wait)
        yield
    finally:
        kubectl(
            *("delete", f"pod/{BYSTANDER}", f"service/{BYSTANDER}", f"service/{BYSTANDER}-dns"),
            *("-n", "default", "--wait=false"),
        )


def _service(name: str, spec: JSON) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"app": BYSTANDER}, **spec},
    }


def _get(kind: str, name: str, namespace: str) -> JSON:
    found = get(kind, name, namespace)
    assert found is not None, f"no {kind} {name}"
    return found


def _on_node(holder: int, *command: str) -> str:
    words = ["nsenter", f"--target={holder}", "--net", "--", *command]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _link_local(table: str) -> str:
    """The address of eth0 in /proc/net/if_inet6, or an address nobody has."""
    for line in table.splitlines():
        address, *_, name = line.split()
        if name == "eth0" and address.startswith("fe80"):
            return ":".join(address[at : at + 4] for at in range(0, 32, 4))
    return "fe80::1"
