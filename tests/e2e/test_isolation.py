"""What a sandbox can and cannot reach, tried from inside real pods."""

import json
from collections.abc import Callable, Iterator

import pytest

import cloister
from support.cluster import (
    SANDBOX_IMAGE,
    SANDBOXES,
    apply,
    get,
    kubectl,
    listing,
    wait_for,
)

CONNECT = """
import socket, sys
for target in sys.argv[1:]:
    host, port = target.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        print(target, "open")
    except OSError as error:
        print(target, "closed")
"""


def reachable(session: "cloister.Session", *targets: str) -> list[str]:
    """Those of the targets that accept a TCP connection from inside the session's pod."""
    session.write("/tmp/connect.py", CONNECT)
    lines = session.bash(f"python3 /tmp/connect.py {' '.join(targets)}").text.splitlines()
    assert len(lines) == len(targets)
    return [line.split()[0] for line in lines if line.endswith("open")]


@pytest.fixture(scope="module")
def pair(
    client: cloister.Client, environments: Callable[..., str]
) -> Iterator[tuple["cloister.Session", "cloister.Session"]]:
    env = environments(pool={"size": 2})
    with client.create_session(env) as first, client.create_session(env) as second:
        yield first, second


@pytest.fixture(scope="module")
def outsider() -> Iterator[str]:
    """An ordinary pod in a namespace that has no policy."""
    name = "e2e-outsider"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "containers": [
                {
                    "name": "main",
                    "image": SANDBOX_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-m", "http.server", "8000"],
                    "workingDir": "/usr",
                }
            ],
            "terminationGracePeriodSeconds": 0,
        },
    }
    apply(pod)
    kubectl("wait", "pod", name, "-n", "default", "--for=condition=Ready", "--timeout=60s")
    yield name
    kubectl("delete", "pod", name, "-n", "default", "--wait=false")


def test_two_sessions_see_nothing_of_each_other(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, second = pair
    first.write("/workspace/secret.txt", "mine")
    first.write("/tmp/secret.txt", "mine")
    first.bash("sleep 311 & disown")
    assert second.read("/workspace/secret.txt").is_error
    assert second.read("/tmp/secret.txt").is_error
    assert second.bash("pgrep -f 'sleep 311' || echo none").text == "none"
    assert first.bash("pgrep -f 'sleep 311' >/dev/null && echo runs").text == "runs"
    assert first.name not in second.bash("env; cat /proc/mounts /etc/hosts").text


def test_a_sandbox_reaches_nothing(
    pair: tuple["cloister.Session", "cloister.Session"], outsider: str
) -> None:
    first, second = pair
    node = listing("nodes", namespace="default")[0]
    node_ip = next(
        each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"
    )
    service = get("service", "kubernetes", "default")
    other = get("pod", outsider, "default")
    operator = listing("pods", "app.kubernetes.io/component=operator", "cloister-system")[0]
    second_pod = get("pod", second.pod_name)
    assert service is not None
    assert other is not None
    assert second_pod is not None
    targets = [
        f"{service['spec']['clusterIP']}:443",
        f"{second_pod['status']['podIP']}:7443",
        f"{other['status']['podIP']}:8000",
        f"{operator['status']['podIP']}:8443",
        f"{operator['status']['podIP']}:8080",
    ]
    assert reachable(first, *targets) == []
    # Positive control: the same targets accept connections from a pod without a policy.
    control = kubectl(
        *("exec", outsider, "-n", "default", "--", "python3", "-c", CONNECT),
        *(targets[0], targets[2], targets[3], f"{node_ip}:6443"),
    )
    assert control.out.count("open") == 4, control.out
    assert reachable(first, f"{node_ip}:6443", f"{node_ip}:10250", "1.1.1.1:443") == []


def test_a_sandbox_resolves_no_names(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    result = first.bash("getent hosts kubernetes.default.svc.cluster.local example.com")
    assert result.exit_code == 2
    assert result.text == "[exit code 2]"


def test_another_pod_cannot_reach_a_sandbox(
    pair: tuple["cloister.Session", "cloister.Session"], outsider: str
) -> None:
    first, _ = pair
    pod = get("pod", first.pod_name)
    assert pod is not None
    target = f"{pod['status']['podIP']}:7443"
    out = kubectl("exec", outsider, "-n", "default", "--", "python3", "-c", CONNECT, target).out
    assert out.split() == [target, "closed"]


def test_no_credentials_in_the_pod(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    assert first.bash("ls /var/run/secrets /run/secrets 2>/dev/null; echo end").text == "end"
    names = first.bash("env | cut -d= -f1 | sort").text.split()
    assert not [each for each in names if "KUBERNETES" in each]
    assert [each for each in names if "CLOISTER" in each] == ["CLOISTER_CONTEXT"]
    pod = get("pod", first.pod_name)
    assert pod is not None
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["enableServiceLinks"] is False


def test_the_pod_is_hardened_from_inside(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    status = dict(
        line.split(":\t", 1) for line in first.bash("cat /proc/self/status").text.splitlines()
    )
    assert status["CapEff"].strip() == status["CapBnd"].strip() == "0" * 16
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Seccomp"].strip() == "2"
    assert first.bash("id -u; id -g").text == "1000\n1000"
    uid_map = first.bash("cat /proc/self/uid_map").text.split()
    assert uid_map != ["0", "0", "4294967295"], "the user namespace is not real"
    assert first.bash("touch /usr/x").is_error
    assert first.bash("touch /etc/x").is_error


def test_pod_security_restricted_is_enforced() -> None:
    labels = (get("namespace", SANDBOXES) or {})["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    privileged = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged", "namespace": SANDBOXES},
        "spec": {
            "containers": [
                {"name": "a", "image": SANDBOX_IMAGE, "securityContext": {"privileged": True}}
            ]
        },
    }
    refused = kubectl("apply", "-f", "-", stdin=json.dumps(privileged), check=False)
    assert refused.code != 0
    assert 'violates PodSecurity "restricted' in refused.err


def test_network_policies_exist_before_any_pod(
    pair: tuple["cloister.Session", "cloister.Session"],
) -> None:
    first, _ = pair
    policies = {each["metadata"]["name"]: each for each in listing("networkpolicies")}
    deny = policies["cloister-default-deny"]
    assert deny["spec"]["podSelector"] == {}
    assert sorted(deny["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    assert "ingress" not in deny["spec"]
    assert "egress" not in deny["spec"]
    oldest = min(
        pod["metadata"]["creationTimestamp"]
        for pod in listing("pods", "app.kubernetes.io/managed-by=cloister")
    )
    assert deny["metadata"]["creationTimestamp"] <= oldest
    assert wait_for("session pod", lambda: get("pod", first.pod_name))
