"""What a recipe is made of, what changes its hash, and which field an error names."""

import base64
import json
from typing import Any

import pytest

from cloister_operator import recipe as recipes
from cloister_operator.api.environment import EnvironmentObject
from cloister_operator.errors import PermanentError
from cloister_operator.plan.packages import Packages
from cloister_operator.recipe import (
    Around,
    Mount,
    Recipe,
    Reference,
    build,
    references,
    value_of,
)
from cloister_operator.settings import Settings
from support.operator_objects import environment, settings

FILE = {"path": "/workspace/a", "content": "one"}
COPY = {"path": "/workspace/b", "content": "two", "readOnly": False}
ALLOWED = {"labels": {"cloister.dev/allow-in-sandbox": "true"}}


GATEWAY = Around(
    "10.96.0.7:3128", Packages(("packages.example",), {"GOPROXY": "https://p.example"})
)


def made(
    values: dict[str, bytes] | None = None,
    platform: Settings | None = None,
    around: Around = GATEWAY,
    **spec: Any,
) -> Recipe:
    return build(environment(**spec), values or {}, platform or settings(), around)


def refusal(**spec: Any) -> PermanentError:
    with pytest.raises(PermanentError) as caught:
        made(**spec)
    return caught.value


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"pool": {"size": 7, "maxSessions": 9}}, id="pool"),
        pytest.param({"lifecycle": {"idleTimeout": "1m", "maxLifetime": "2h"}}, id="lifecycle"),
        pytest.param({"image": "registry.example/sandbox:1"}, id="the default image, named"),
        pytest.param({"files": [], "env": []}, id="empty lists"),
        pytest.param({"networking": {"mcpServers": ["https://m.example.com/"]}}, id="servers"),
    ],
)
def test_the_hash_stays_when_a_pod_would_be_the_same(spec: dict[str, Any]) -> None:
    assert made(**spec).hash == made().hash


DIFFERENT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "image": {"image": "registry.example/sandbox:2"},
    "file": {"files": [FILE]},
    "content": {"files": [FILE | {"content": "two"}]},
    "path": {"files": [FILE | {"path": "/workspace/c"}]},
    "mode": {"files": [FILE | {"mode": "0555"}]},
    "copy": {"files": [FILE | {"readOnly": False}]},
    "two files": {"files": [FILE, COPY]},
    "two files turned round": {"files": [COPY, FILE]},
    "variable": {"env": [{"name": "A", "value": "1"}]},
    "value": {"env": [{"name": "A", "value": "2"}]},
    "variable's name": {"env": [{"name": "B", "value": "1"}]},
    "setup": {"setup": "true"},
    "cpu": {"resources": {"cpu": "2"}},
    "memory": {"resources": {"memory": "2Gi"}},
    "disk": {"resources": {"disk": "3Gi"}},
    "gpu": {"resources": {"extended": {"nvidia.com/gpu": 1}}},
    "node": {"scheduling": {"nodeSelector": {"disk": "fast"}}},
    "toleration": {"scheduling": {"tolerations": [{"operator": "Exists"}]}},
    "priority": {"scheduling": {"priorityClassName": "low"}},
    "pull secret": {"scheduling": {"imagePullSecrets": [{"name": "pull"}]}},
    "workspace": {"workspace": {"size": "5Gi"}},
    "network": {"networking": {"allowedHosts": ["api.example.com"]}},
    "another host": {"networking": {"allowedHosts": ["b.example.com"]}},
    "package managers": {"networking": {"allowPackageManagers": True}},
    "the internet": {"networking": {"type": "unrestricted"}},
    "rootish": {"isolation": {"profile": "rootish"}},
    "packages": {"packages": {"pip": ["numpy"]}},
}


EVERYTHING = {
    "allowed_tolerations": ("*",),
    "allowed_priority_classes": ("*",),
    "allowed_extended_resources": ("*",),
}


def test_the_hash_differs_with_all_that_a_pod_is_made_of() -> None:
    platform = settings(**EVERYTHING)
    hashes = {name: made(platform=platform, **spec).hash for name, spec in DIFFERENT.items()}
    assert len(set(hashes.values())) == len(hashes), hashes
    assert all(len(each) == 10 and int(each, 16) >= 0 for each in hashes.values())


def test_the_hash_is_the_same_in_every_process() -> None:
    assert made(files=[FILE, COPY], env=[{"name": "A", "value": "1"}]).hash == "41df09225f"


@pytest.mark.parametrize(
    "change",
    [
        {"sandbox_image": "registry.example/sandbox:2"},
        {"default_cpu": "2"},
        {"default_memory": "2Gi"},
        {"default_disk": "4Gi"},
        {"sandbox_user_namespaces": False},
        {"max_processes": 100},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_hash_differs_with_the_platforms_defaults(change: dict[str, Any]) -> None:
    assert made(platform=settings(**change)).hash != made().hash


def test_the_hash_differs_with_its_runtime_classs_user_namespaces_only() -> None:
    allowed = {"allowed_runtime_classes": ("gvisor", "kata")}
    without = allowed | {"runtime_classes_without_user_namespaces": ("gvisor",)}
    gvisor, kata = ({"runtimeClassName": name} for name in ("gvisor", "kata"))
    before = made(platform=settings(**allowed), isolation=gvisor).hash
    assert made(platform=settings(**without), isolation=gvisor).hash != before
    before = made(platform=settings(**allowed), isolation=kata).hash
    assert made(platform=settings(**without), isolation=kata).hash == before


def test_a_secrets_new_value_changes_the_hash() -> None:
    env = [{"name": "TOKEN", "secretKeyRef": {"name": "s", "key": "k"}}]
    field = "spec.env[0].secretKeyRef"
    assert made({field: b"one"}, env=env).hash != made({field: b"two"}, env=env).hash


def test_what_the_exec_server_gets() -> None:
    found = made(
        {"spec.files[2].secretKeyRef": b"\x00secret"},
        files=[FILE, COPY | {"mode": "0700"}, {"path": "/etc/x", "secretKeyRef": KEY}],
        env=[{"name": "A", "value": "1"}, {"name": "EMPTY"}],
        setup="make",
    )
    assert json.loads(found.payload["recipe.json"]) == {
        "env": {"A": "1", "EMPTY": ""},
        "setup": "make",
        "setupTimeoutSeconds": 600,
        "copies": [{"source": "f1", "path": "/workspace/b", "mode": 0o700}],
        "limits": {"fileBytes": 2 * 1024**3, "processes": 4096},
    }
    files = {key: value for key, value in found.payload.items() if key != "recipe.json"}
    assert files == {"f0": b"one", "f1": b"two", "f2": b"\x00secret"}
    assert found.mounts == (Mount("f0", "/workspace/a", 0o444), Mount("f2", "/etc/x", 0o444))
    assert "secret" not in repr(found)


KEY = {"name": "s", "key": "k"}


def test_references_say_where_they_are_named() -> None:
    spec = environment(
        files=[FILE, {"path": "/a", "configMapKeyRef": KEY}, {"path": "/b", "secretKeyRef": KEY}],
        env=[{"name": "A", "value": "1"}, {"name": "B", "secretKeyRef": KEY}],
    ).spec
    assert references(spec.files, spec.env) == [
        Reference("ConfigMap", "s", "k", "spec.files[1].configMapKeyRef"),
        Reference("Secret", "s", "k", "spec.files[2].secretKeyRef"),
        Reference("Secret", "s", "k", "spec.env[1].secretKeyRef"),
    ]


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("Secret", {"metadata": ALLOWED, "data": {"k": encoded(b"v")}}),
        ("ConfigMap", {"metadata": ALLOWED, "data": {"k": "v"}}),
        ("ConfigMap", {"metadata": ALLOWED, "binaryData": {"k": encoded(b"v")}}),
    ],
)
def test_values_of_references(kind: str, found: dict[str, Any]) -> None:
    assert value_of(Reference(kind, "s", "k", "spec.x"), found) == b"v"


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        pytest.param(None, "ReferenceNotFound", "does not exist", id="no object"),
        pytest.param({"metadata": ALLOWED}, "ReferenceNotFound", "no key k", id="no key"),
        pytest.param(
            {"metadata": {}, "data": {"k": "dg=="}}, "ReferenceRefused", "allow-in-sandbox", id="no"
        ),
        pytest.param(
            {
                "metadata": {"labels": {"cloister.dev/allow-in-sandbox": "yes"}},
                "data": {"k": "dg=="},
            },
            "ReferenceRefused",
            "allow-in-sandbox=true",
            id="another value of the label",
        ),
    ],
)
def test_references_that_cannot_be_used(
    found: dict[str, Any] | None, reason: str, words: str
) -> None:
    with pytest.raises(PermanentError) as caught:
        value_of(Reference("Secret", "s", "k", "spec.env[3].secretKeyRef"), found)
    assert (caught.value.reason, caught.value.field) == (reason, "spec.env[3].secretKeyRef")
    assert words in caught.value.sentence
    assert "Secret s" in caught.value.sentence


def test_a_refused_reference_does_not_tell_whether_its_key_exists() -> None:
    """Otherwise an Environment could ask which keys a Secret has."""
    texts = set()
    for data in ({"k": "dg=="}, {}):
        with pytest.raises(PermanentError) as caught:
            value_of(Reference("Secret", "s", "k", "spec.x"), {"metadata": {}, "data": data})
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_a_file_needs_a_source() -> None:
    error = refusal(files=[FILE, {"path": "/workspace/x"}])
    assert (error.reason, error.field) == ("InvalidSpec", "spec.files[1]")


def test_a_variable_must_be_text() -> None:
    error = refusal(
        values={"spec.env[0].secretKeyRef": b"\xff"}, env=[{"name": "A", "secretKeyRef": KEY}]
    )
    assert (error.reason, error.field) == ("InvalidSpec", "spec.env[0].secretKeyRef")


def test_files_must_fit_a_secret() -> None:
    half = "x" * (recipes.MAX_PAYLOAD_BYTES // 2)
    made(files=[FILE | {"content": half}, COPY | {"content": half}])
    error = refusal(files=[FILE | {"content": half}, COPY | {"content": half + "x"}])
    assert (error.reason, error.field) == ("InvalidSpec", "spec.files")


@pytest.mark.parametrize(
    ("allowed", "image", "fine"),
    [
        ((), "anything:1", True),
        (("registry.example/*",), "registry.example/team/x:1", True),
        (("registry.example/*",), "registry.example.evil/x:1", False),
        (("registry.example/*",), "evil/registry.example/x:1", False),
        (("a/*", "b:1"), "b:1", True),
        (("a/*", "b:1"), "b:2", False),
        (("A/*",), "a/x", False),
    ],
)
def test_allowed_images(allowed: tuple[str, ...], image: str, fine: bool) -> None:
    platform = settings(allowed_images=allowed)
    if fine:
        assert made(platform=platform, image=image).image == image
        return
    error = refusal(platform=platform, image=image)
    assert (error.reason, error.field) == ("PolicyRefused", "spec.image")
    assert allowed[0] in error.sentence


def test_the_platforms_own_image_is_always_allowed() -> None:
    assert made(platform=settings(allowed_images=("b:1",))).image == settings().sandbox_image


def test_runtime_classes_are_refused_unless_allowed() -> None:
    isolation = {"runtimeClassName": "gvisor"}
    error = refusal(isolation=isolation)
    assert (error.reason, error.field) == ("PolicyRefused", "spec.isolation.runtimeClassName")
    made(platform=settings(allowed_runtime_classes=("gvisor",)), isolation=isolation)


def test_a_variable_that_no_process_can_have_is_refused() -> None:
    env = [{"name": "FINE", "value": "x"}, {"name": "BAD", "value": "a\0b"}]
    error = refusal(env=env)
    assert (error.reason, error.field) == ("InvalidSpec", "spec.env[1].value")
    assert "a\0b" not in error.sentence


def test_an_object_that_cannot_be_read_is_told_without_its_values() -> None:
    body = {"metadata": {"name": "e"}, "spec": {"env": [{"name": "KEY", "value": ["s3cret"]}]}}
    with pytest.raises(ValueError, match="value") as failure:
        EnvironmentObject.parse(body)
    assert "s3cret" not in str(failure.value)


def limits_of(platform: Settings | None = None, **spec: Any) -> dict[str, int]:
    found: dict[str, int] = json.loads(made(platform=platform, **spec).payload["recipe.json"])[
        "limits"
    ]
    return found


def test_processes_are_bounded_where_they_are_counted_for_one_sandbox() -> None:
    assert limits_of(settings(max_processes=77))["processes"] == 77
    assert "processes" not in limits_of(settings(max_processes=0))
    # Without a user namespace one sandbox would use up what all of its node may have.
    assert "processes" not in limits_of(settings(sandbox_user_namespaces=False))


def test_a_file_may_be_as_large_as_its_disk() -> None:
    assert limits_of(resources={"disk": "3Gi"})["fileBytes"] == 3 * 1024**3
    workspace = {"size": "9G", "persistent": True}
    assert limits_of(resources={"disk": "3Gi"}, workspace=workspace)["fileBytes"] == 9 * 10**9


def test_hosts_need_a_gateway() -> None:
    hosts: dict[str, Any] = {"networking": {"allowedHosts": ["api.example.com"]}}
    error = refusal(around=Around(), **hosts)
    assert (error.reason, error.field) == ("EgressGatewayMissing", "spec.networking")
    managers: dict[str, Any] = {"networking": {"allowPackageManagers": True}}
    assert refusal(around=Around(), **managers).reason == "EgressGatewayMissing"
    specs: tuple[dict[str, Any], ...] = ({}, {"networking": {"type": "unrestricted"}})
    for spec in specs:
        assert made(around=Around(), **spec)


def test_the_hash_differs_with_what_it_stands_on() -> None:
    moved = Around("10.96.0.8:3128", GATEWAY.packages)
    other = Around(GATEWAY.gateway, Packages(("other.example",)))
    hosts: dict[str, Any] = {"networking": {"allowedHosts": ["api.example.com"]}}
    managers: dict[str, Any] = {"networking": {"allowPackageManagers": True}}
    assert made(around=moved, **hosts).hash != made(**hosts).hash
    assert made(around=other, **managers).hash != made(**managers).hash
    # Who uses neither keeps its pods.
    assert made(around=moved).hash == made().hash
    assert made(around=other, **hosts).hash == made(**hosts).hash


def test_a_file_for_apt_of_the_environments_own_stays() -> None:
    own = {"path": "/etc/apt/apt.conf.d/95cloister-proxy", "content": "# mine"}
    found = made(files=[own], networking={"allowedHosts": ["api.example.com"]})
    assert [each.path for each in found.mounts] == [own["path"]]


def test_profiles_and_the_internet_are_the_platforms_choice() -> None:
    rootish = {"isolation": {"profile": "rootish"}}
    error = refusal(platform=settings(allowed_profiles=("strict",)), **rootish)
    assert (error.reason, error.field) == ("PolicyRefused", "spec.isolation.profile")
    internet = {"networking": {"type": "unrestricted"}}
    error = refusal(platform=settings(egress_unrestricted=False), **internet)
    assert (error.reason, error.field) == ("PolicyRefused", "spec.networking.type")


def test_root_needs_a_user_namespace_or_a_kernel_of_its_own() -> None:
    rootish: dict[str, Any] = {"profile": "rootish"}
    error = refusal(platform=settings(sandbox_user_namespaces=False), isolation=rootish)
    assert (error.reason, error.field) == ("PolicyRefused", "spec.isolation.profile")
    allowed = settings(
        sandbox_user_namespaces=False,
        allowed_runtime_classes=("gvisor", "other"),
        runtime_classes_without_user_namespaces=("gvisor",),
    )
    assert made(platform=allowed, isolation=rootish | {"runtimeClassName": "gvisor"})
    refusal(platform=allowed, isolation=rootish | {"runtimeClassName": "other"})


PLACEMENTS: list[tuple[dict[str, Any], str]] = [
    ({"scheduling": {"tolerations": [{"key": "a.example/x"}]}}, "spec.scheduling.tolerations[0]"),
    (
        {"scheduling": {"tolerations": [{"key": "pool"}, {"operator": "Exists"}]}},
        "spec.scheduling.tolerations[1]",
    ),
    (
        {"scheduling": {"tolerations": [{"key": "node-role.kubernetes.io/control-plane"}]}},
        "spec.scheduling.tolerations[0]",
    ),
    (
        {"scheduling": {"nodeSelector": {"zone": "a", "kubernetes.io/hostname": "n1"}}},
        "spec.scheduling.nodeSelector",
    ),
    ({"scheduling": {"priorityClassName": "high"}}, "spec.scheduling.priorityClassName"),
    ({"resources": {"extended": {"devices.example/kvm": 1}}}, "spec.resources.extended"),
]


@pytest.mark.parametrize(("spec", "field"), PLACEMENTS)
def test_nodes_devices_and_priorities_are_the_platforms_choice(
    spec: dict[str, Any], field: str
) -> None:
    some = settings(
        allowed_tolerations=("pool", "b.example/*"),
        allowed_node_labels=("zone", "pool*"),
        allowed_priority_classes=("low", "lower-?"),
        allowed_extended_resources=("gpu.example/*",),
    )
    error = refusal(platform=some, **spec)
    assert (error.reason, error.field) == ("PolicyRefused", field)
    assert "the platform allows these" in str(error)
    closed = settings(allowed_node_labels=())
    assert refusal(platform=closed, **spec).field == field.replace("[1]", "[0]")
    assert made(platform=settings(**EVERYTHING), **spec)


def test_what_the_platform_lists_of_nodes_may_be_named() -> None:
    some = settings(
        allowed_tolerations=("pool", "b.example/*"), allowed_priority_classes=("lower-?",)
    )
    wanted = {
        "tolerations": [{"key": "pool"}, {"key": "b.example/x", "operator": "Exists"}],
        "nodeSelector": {"kubernetes.io/hostname": "n1"},
        "priorityClassName": "lower-2",
    }
    assert made(platform=some, scheduling=wanted)
    assert refusal(platform=settings(), scheduling=wanted).field == "spec.scheduling.tolerations[0]"
