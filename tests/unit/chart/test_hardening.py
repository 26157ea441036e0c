"""The chart's own pods are as hardened as the sandboxes, and every image may be named by digest."""

from typing import Any

import pytest

from support.chart import ALL_VALUES, render

DIGEST = f"sha256:{'2' * 64}"
OPTIONS = {"default": (), "all-values": ("-f", str(ALL_VALUES))}


def pods(*options: str) -> dict[str, dict[str, Any]]:
    """Specs of the pods of a rendering, by name."""
    made = render(*options)
    found = {each["metadata"]["name"]: each["spec"] for each in made.of("Pod")}
    for each in made.of("Deployment"):
        found[each["metadata"]["name"]] = each["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_pod_would_pass_pod_security_restricted_and_cannot_write_its_image(
    options: tuple[str, ...],
) -> None:
    found = pods(*options)
    assert set(found) == {"cloister-operator", "cloister-egress-gateway", "cloister-helm-test"}
    for name, spec in found.items():
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        for each in (*spec["containers"], *spec.get("initContainers", [])):
            own = each["securityContext"]
            where = f"{name}/{each['name']}"
            assert own["allowPrivilegeEscalation"] is False, where
            assert own["readOnlyRootFilesystem"] is True, where
            assert own["capabilities"] == {"drop": ["ALL"]}, where
            assert "privileged" not in own
            assert own.get("runAsUser", 1) > 0
        for each in spec.get("volumes", []):
            assert "hostPath" not in each, name


def test_the_gateway_has_no_kubernetes_token() -> None:
    assert pods()["cloister-egress-gateway"]["automountServiceAccountToken"] is False


def test_every_image_may_be_named_by_digest() -> None:
    found = pods(
        *("--set", f"image.digest={DIGEST}"),
        *("--set", f"egress.gateway.image.digest={DIGEST}"),
        *("--set", f"tests.image.digest={DIGEST}"),
        *("--set", f"sandbox.image=registry.example.com/cloister/sandbox@{DIGEST}"),
    )
    for name, spec in found.items():
        for each in (*spec["containers"], *spec.get("initContainers", [])):
            assert each["image"].endswith(f"@{DIGEST}"), (name, each["name"])
    (operator,) = found["cloister-operator"]["containers"]
    env = {each["name"]: each.get("value") for each in operator["env"]}
    assert env["CLOISTER_SANDBOX_IMAGE"].endswith(f"/sandbox@{DIGEST}")
