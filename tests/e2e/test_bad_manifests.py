"""What the API server refuses at `kubectl apply`, naming field and reason, and what it takes."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.cluster import SANDBOXES, apply, environment, kubectl, session, wait_gone

Spec = dict[str, Any]
LONG = "a" * 41


def file(path: str = "/etc/app/x", **fields: Any) -> Spec:
    """A spec with one file."""
    source = {"content", "configMapKeyRef", "secretKeyRef", "git"} & set(fields)
    content = {} if source else {"content": "x"}
    return {"files": [{"path": path, **content, **fields}]}


def variable(name: str, **fields: Any) -> Spec:
    """A spec with one variable."""
    return {"env": [{"name": name, **(fields or {"value": "x"})}]}


def hosts(*names: str) -> Spec:
    return {"networking": {"allowedHosts": list(names)}}


def resources(**fields: Any) -> Spec:
    return {"resources": fields}


UNSUPPORTED = "is not supported by this version of Cloister"

# Each: what is wrong, the Environment's spec, the field named, words of the reason.
ENVIRONMENTS: list[tuple[str, Spec, str, str]] = [
    ("unknown field", {"imagee": "x"}, "spec.imagee", "unknown field"),
    ("unknown nested field", {"pool": {"sise": 1}}, "spec.pool.sise", "unknown field"),
    ("image with a space", {"image": "a b"}, "spec.image", "image reference"),
    ("empty image", {"image": ""}, "spec.image", "at least 1"),
    ("image of another type", {"image": 7}, "spec.image", "type string"),
    # Not yet supported.
    ("packages", {"packages": {"pip": ["pandas==2.2.0"]}}, "spec.packages", UNSUPPORTED),
    ("packages of no known manager", {"packages": {"conda": ["x"]}}, "conda", "unknown field"),
    (
        "hosts of the unrestricted",
        {"networking": {"type": "unrestricted", "allowedHosts": ["example.com"]}},
        "spec.networking.allowedHosts",
        "for type limited",
    ),
    (
        "package managers of the unrestricted",
        {"networking": {"type": "unrestricted", "allowPackageManagers": True}},
        "spec.networking.allowPackageManagers",
        "for type limited",
    ),
    (
        "MCP servers of the unrestricted",
        {"networking": {"type": "unrestricted", "allowMcpServers": True}},
        "spec.networking.allowMcpServers",
        "for type limited",
    ),
    ("networking type", {"networking": {"type": "open"}}, "spec.networking.type", "supported val"),
    ("host in two places", hosts("a.example.com", "a.example.com"), "allowedHosts", "Duplicate"),
    ("host with a scheme", hosts("https://example.com"), "allowedHosts[0]", "no scheme"),
    ("host with a port", hosts("a.example.com", "example.com:443"), "allowedHosts[1]", "port"),
    ("address as a host", hosts("10.0.0.1"), "allowedHosts[0]", "address"),
    ("wildcard for everything", hosts("*.com"), "allowedHosts[0]", "host names"),
    ("name of the cluster", hosts("kubernetes.default.svc"), "allowedHosts[0]", "this cluster"),
    (
        "MCP server without TLS",
        {"networking": {"mcpServers": ["http://mcp.example.com"]}},
        "spec.networking.mcpServers[0]",
        "https",
    ),
    (
        "MCP server on another port",
        {"networking": {"mcpServers": ["https://mcp.example.com:8443/mcp"]}},
        "spec.networking.mcpServers[0]",
        "port 443",
    ),
    (
        "repository that nobody may change",
        file("/workspace/repo", git={"url": "https://git.example.com/x"}),
        "spec.files[0].readOnly",
        "must be false with git",
    ),
    (
        "repository with a mode",
        file("/workspace/repo", readOnly=False, mode="0644", git={"url": "https://example.com/x"}),
        "spec.files[0].mode",
        "does not go with git",
    ),
    (
        "repository with a user in its URL",
        file("/workspace/repo", readOnly=False, git={"url": "https://me:pw@example.com/x"}),
        "spec.files[0].git.url",
        "no user",
    ),
    (
        "repository over ssh",
        file("/workspace/repo", readOnly=False, git={"url": "ssh://example.com/x"}),
        "spec.files[0].git.url",
        "https",
    ),
    (
        "ref that is an option",
        file("/workspace/repo", readOnly=False, git={"url": "https://example.com/x", "ref": "-x"}),
        "spec.files[0].git.ref",
        "branch, a tag",
    ),
    (
        "storage class without a volume",
        {"workspace": {"storageClassName": "fast"}},
        "spec.workspace.storageClassName",
        "for a persistent workspace",
    ),
    (
        "storage class that cannot be",
        {"workspace": {"persistent": True, "storageClassName": "A_B"}},
        "spec.workspace.storageClassName",
        "name of a StorageClass",
    ),
    ("profile", {"isolation": {"profile": "root"}}, "spec.isolation.profile", "supported val"),
    (
        "suspend without a workspace that is kept",
        {"lifecycle": {"onIdle": "Suspend"}},
        "spec.lifecycle.onIdle",
        "needs workspace.persistent",
    ),
    # Files.
    ("relative path", file("etc/x"), "spec.files[0].path", "absolute"),
    ("path with ..", file("/workspace/../etc/x"), "spec.files[0].path", "'..' parts"),
    ("path with //", file("/workspace//x"), "spec.files[0].path", "no empty"),
    ("path with a / at its end", file("/workspace/x/"), "spec.files[0].path", "at its end"),
    ("path with a line feed", file("/etc/a\nb"), "spec.files[0].path", "control characters"),
    ("file in /proc", file("/proc/sys/kernel/core_pattern"), "spec.files[0].path", "/proc"),
    ("file over the recipe", file("/run/cloister/recipe/x"), "spec.files[0].path", "/run"),
    ("file over the recipe by a link", file("/var/run/cloister/x"), "spec.files[0].path", "/run"),
    ("file over the exec server", file("/opt/cloister/bin/x"), "files[0].path", "/opt/cloister"),
    ("file before Python's own", file("/usr/lib/python311.zip"), "files[0].path", "/usr/local"),
    ("file over a library", file("/lib64/ld-linux-x86-64.so.2"), "files[0].path", "/usr/local"),
    ("file over a program", file("/bin/bash"), "files[0].path", "/usr/local"),
    ("file over /etc/passwd", file("/etc/passwd"), "spec.files[0].path", "/etc/passwd"),
    ("file over a directory", file("/workspace"), "spec.files[0].path", "directory"),
    (
        "writable file in a place that is not",
        file("/etc/app/x", readOnly=False),
        "spec.files[0].path",
        "nothing else is writable",
    ),
    (
        "the same path twice",
        {"files": [{"path": "/etc/a", "content": "1"}, {"path": "/etc/a", "content": "2"}]},
        "spec.files[1]",
        "Duplicate value",
    ),
    (
        "a file that is also a directory",
        {"files": [{"path": "/etc/a", "content": "1"}, {"path": "/etc/a/b", "content": "2"}]},
        "spec.files",
        "a directory in another",
    ),
    (
        "two sources",
        file(content="x", secretKeyRef={"name": "a", "key": "b"}),
        "files[0]",
        "one of",
    ),
    ("no source", {"files": [{"path": "/etc/x"}]}, "spec.files[0]", "exactly one of"),
    ("no path", {"files": [{"content": "x"}]}, "spec.files[0].path", "Required value"),
    ("mode that is a number", file(mode=420), "spec.files[0].mode", "type string"),
    ("mode that is not octal", file(mode="0888"), "spec.files[0].mode", "octal"),
    ("mode with special bits", file(mode="4755"), "spec.files[0].mode", "octal"),
    ("mode that the kubelet changes", file(mode="0400"), "spec.files[0].mode", "group read"),
    ("large content", file(content="x" * 262145), "spec.files[0].content", "Too long"),
    (
        "reference without a key",
        file(configMapKeyRef={"name": "a"}),
        "spec.files[0].configMapKeyRef.key",
        "Required value",
    ),
    (
        "reference to a name that cannot be",
        file(secretKeyRef={"name": "../a", "key": "b"}),
        "spec.files[0].secretKeyRef.name",
        "name of a Kubernetes object",
    ),
    # Variables.
    ("variable with a dash", variable("A-B"), "spec.env[0].name", "letters, digits"),
    ("variable of Cloister's", variable("CLOISTER_POD_UID"), "spec.env[0].name", "CLOISTER_*"),
    ("variable for the loader", variable("LD_PRELOAD"), "spec.env[0].name", "LD_PRELOAD"),
    ("variable for the shell", variable("BASH_ENV"), "spec.env[0].name", "BASH_ENV"),
    (
        "variable with two sources",
        variable("A", value="x", secretKeyRef={"name": "a", "key": "b"}),
        "spec.env[0]",
        "exactly one of",
    ),
    ("variable without a value", {"env": [{"name": "A"}]}, "spec.env[0]", "exactly one of"),
    (
        "the same variable twice",
        {"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
        "spec.env[1]",
        "Duplicate value",
    ),
    # Sizes and places.
    ("cpu that is no quantity", resources(cpu="two"), "spec.resources.cpu", "quantity"),
    ("negative cpu", resources(cpu=-1), "spec.resources.cpu", "at least 50m"),
    ("memory in bytes by mistake", resources(memory=512), "spec.resources.memory", "64Mi"),
    ("workspace without a size", {"workspace": {"size": "big"}}, "spec.workspace.size", "quantity"),
    (
        "workspace larger than the disk",
        {"workspace": {"size": "3Gi"}, **resources(disk="2Gi")},
        "spec.workspace.size",
        "resources.disk",
    ),
    (
        "extended resource of Kubernetes' own",
        resources(extended={"cpu": 1}),
        "spec.resources.extended",
        "nvidia.com/gpu",
    ),
    (
        "half a GPU",
        resources(extended={"nvidia.com/gpu": "500m"}),
        "spec.resources.extended[nvidia.com/gpu]",
        "whole number",
    ),
    (
        "toleration without a key",
        {"scheduling": {"tolerations": [{"effect": "NoSchedule"}]}},
        "spec.scheduling.tolerations[0].operator",
        "Exists",
    ),
    (
        "node label that cannot be",
        {"scheduling": {"nodeSelector": {"zone": "a b"}}},
        "spec.scheduling.nodeSelector[zone]",
        "label values",
    ),
    (
        "priority of the system's",
        {"scheduling": {"priorityClassName": "system-node-critical"}},
        "spec.scheduling.priorityClassName",
        "system",
    ),
    (
        "runtime class that cannot be",
        {"isolation": {"runtimeClassName": "gVisor!"}},
        "spec.isolation.runtimeClassName",
        "RuntimeClass",
    ),
    ("negative pool", {"pool": {"size": -1}}, "spec.pool.size", "greater than or equal to 0"),
    ("huge pool", {"pool": {"size": 1001}}, "spec.pool.size", "less than or equal to 1000"),
    ("no sessions at all", {"pool": {"maxSessions": 0}}, "spec.pool.maxSessions", "equal to 1"),
    ("time without a unit", {"lifecycle": {"idleTimeout": "30"}}, "idleTimeout", "such as 30m"),
    ("time as a number", {"lifecycle": {"maxLifetime": 3600}}, "maxLifetime", "type string"),
    ("no time", {"lifecycle": {"idleTimeout": "0s"}}, "spec.lifecycle.idleTimeout", "at least 1s"),
    (
        "idle for longer than alive",
        {"lifecycle": {"idleTimeout": "2h", "maxLifetime": "1h"}},
        "spec.lifecycle.idleTimeout",
        "maxLifetime",
    ),
]

# Each: what is wrong, the Session's spec beside environmentName, the field named, the reason.
SESSIONS: list[tuple[str, Spec, str, str]] = [
    ("no Environment", {"environmentName": None}, "spec.environmentName", "Required value"),
    ("name that cannot be", {"environmentName": "A_B"}, "spec.environmentName", "name of an Env"),
    ("unknown field", {"environment": "a"}, "spec.environment", "unknown field"),
    ("unknown state", {"state": "Paused"}, "spec.state", "supported values"),
    ("git", file("/workspace/x", git={"url": "https://x"}), "spec.files[0].git", "unknown field"),
    ("mounted file", file("/workspace/x", readOnly=True), "spec.files[0].readOnly", "copies"),
    ("file outside", file("/etc/app/x"), "spec.files[0].path", "below /workspace"),
    ("path with ..", file("/workspace/../etc/x"), "spec.files[0].path", "'..' parts"),
    ("variable of Cloister's", variable("CLOISTER_X"), "spec.env[0].name", "CLOISTER_*"),
    ("time without a unit", {"lifecycle": {"maxLifetime": "1d"}}, "maxLifetime", "such as 30m"),
    (
        "idle for longer than alive",
        {"lifecycle": {"idleTimeout": "2h", "maxLifetime": "1h"}},
        "spec.lifecycle.idleTimeout",
        "maxLifetime",
    ),
]

GOOD: list[tuple[str, Spec]] = [
    ("nothing at all", {}),
    ("empty packages", {"packages": {"pip": []}}),
    (
        "files",
        {
            "files": [
                {"path": "/etc/app/a", "content": "", "mode": "0444"},
                {"path": "/opt/bin/b", "content": "x", "mode": "0755"},
                {"path": "/workspace/.c d", "content": "x", "mode": "0600", "readOnly": False},
                {"path": "/mnt/session/uploads/d", "configMapKeyRef": {"name": "a.b", "key": "d"}},
                {"path": "/etc/app/ab", "secretKeyRef": {"name": "a", "key": "_.-"}},
            ]
        },
    ),
    ("variables", {"env": [{"name": "_A1", "value": ""}, {"name": "PATH", "value": "/opt/bin"}]}),
    (
        "resources",
        {
            **resources(cpu=2, memory="512Mi", disk="1.5Gi", extended={"nvidia.com/gpu": 1}),
            "workspace": {"size": 1073741824},
        },
    ),
    (
        "scheduling",
        {
            "scheduling": {
                "nodeSelector": {"topology.kubernetes.io/zone": "a", "spot": ""},
                "tolerations": [
                    {"operator": "Exists"},
                    {"key": "sandbox", "value": "yes", "effect": "NoSchedule"},
                ],
                "imagePullSecrets": [{"name": "registry"}],
            }
        },
    ),
    ("lifecycle", {"lifecycle": {"idleTimeout": "90s", "maxLifetime": "1h30m"}}),
    ("the largest pool", {"pool": {"size": 1000, "maxSessions": 1}}),
]


def names(cases: list[Any]) -> list[str]:
    return [case[0] for case in cases]


def dry_run(manifest: dict[str, Any], *options: str) -> tuple[int, str]:
    """kubectl's exit code and complaints when it applies a manifest; nothing is kept."""
    stdin = json.dumps(manifest)
    result = kubectl("apply", "--dry-run=server", *options, "-f", "-", stdin=stdin, check=False)
    return result.code, result.err


def assert_refused(manifest: dict[str, Any], field: str, reason: str) -> None:
    code, said = dry_run(manifest)
    assert code != 0, "it was accepted"
    assert field in said, said
    assert reason in said, said


@pytest.mark.parametrize(
    ("_what", "spec", "field", "reason"), ENVIRONMENTS, ids=names(ENVIRONMENTS)
)
def test_a_wrong_environment_is_refused(_what: str, spec: Spec, field: str, reason: str) -> None:
    assert_refused(environment("wrong", **spec), field, reason)


@pytest.mark.parametrize(("_what", "spec", "field", "reason"), SESSIONS, ids=names(SESSIONS))
def test_a_wrong_session_is_refused(_what: str, spec: Spec, field: str, reason: str) -> None:
    manifest = session("wrong", "some")
    manifest["spec"] |= spec
    manifest["spec"] = {key: value for key, value in manifest["spec"].items() if value is not None}
    assert_refused(manifest, field, reason)


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        (environment(LONG), "metadata.name"),
        (environment("with.dot"), "metadata.name"),
        (session("a" * 64, "some"), "metadata.name"),
    ],
    ids=["Environment's too long", "Environment's with a dot", "Session's too long"],
)
def test_a_wrong_name_is_refused(manifest: dict[str, Any], field: str) -> None:
    assert_refused(manifest, field, "must")


@pytest.mark.parametrize(("_what", "spec"), GOOD, ids=names(GOOD))
def test_a_good_environment_is_accepted(_what: str, spec: Spec) -> None:
    code, said = dry_run(environment("good", **spec))
    assert code == 0, said


def test_files_that_are_too_large_together_are_refused() -> None:
    """By server-side apply: the other kind keeps the manifest in an annotation, with a limit."""
    files = [{"path": f"/etc/{index}", "content": "x" * 200_000} for index in range(4)]
    code, said = dry_run(environment("wrong", files=files), "--server-side")
    assert code != 0, "it was accepted"
    assert "spec.files" in said, said
    assert "768 KiB" in said, said
    code, said = dry_run(environment("good", files=files[:3]), "--server-side")
    assert code == 0, said


def test_the_largest_environment_is_accepted() -> None:
    """All the bounds at once stay below what the API server lets rules cost."""
    path = "/workspace/" + "a" * 498
    largest = environment(
        "a" * 40,
        files=[
            {"path": f"{path}{index:03}", "content": "x" * 12_000, "readOnly": False}
            for index in range(64)
        ],
        env=[{"name": f"{'A' * 125}{index:03}", "value": "x" * 2_000} for index in range(100)],
        setup="x" * 65_536,
    )
    code, said = dry_run(largest, "--server-side")
    assert code == 0, said


@pytest.fixture(scope="module")
def waiting() -> Iterator[dict[str, Any]]:
    """A Session of an Environment that does not exist, so that it waits."""
    manifest = session(
        "e2e-immutable",
        "no-such-environment",
        env=[{"name": "A", "value": "1"}],
        files=[{"path": "/workspace/a", "content": "1"}],
    )
    apply(manifest)
    yield manifest
    kubectl("delete", "session", "e2e-immutable", "-n", SANDBOXES)
    wait_gone("session", "e2e-immutable")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"environmentName": "another"}, "spec.environmentName"),
        ({"env": [{"name": "A", "value": "2"}]}, "spec.env"),
        ({"env": None}, "spec.env"),
        ({"files": [{"path": "/workspace/a", "content": "2"}]}, "spec.files"),
        ({"files": None}, "spec.files"),
    ],
    ids=["environmentName", "env", "env removed", "files", "files removed"],
)
def test_what_went_into_the_sandbox_cannot_be_changed(
    waiting: dict[str, Any], change: Spec, field: str
) -> None:
    spec = {key: value for key, value in (waiting["spec"] | change).items() if value is not None}
    assert_refused({**waiting, "spec": spec}, field, "cannot be changed")


def test_limits_of_a_session_may_be_changed(waiting: dict[str, Any]) -> None:
    spec = waiting["spec"] | {"lifecycle": {"maxLifetime": "1h"}}
    code, said = dry_run({**waiting, "spec": spec})
    assert code == 0, said
