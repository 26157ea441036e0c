"""The admission policies as rendered; what they let through is tried on a real API server, in
tests/faults_operator/test_admission.py.
"""

from typing import Any

from support.chart import ALL_VALUES, render

POLICIES = {
    "cloister-sandbox-environments",
    "cloister-sandbox-owned",
    "cloister-sandbox-pod-binding",
    "cloister-sandbox-pods",
    "cloister-sandbox-pod-changes",
    "cloister-sandbox-pod-status",
    "cloister-sandbox-connect",
    "cloister-sandbox-rules",
}
GATEWAYS = "cloister-gateway-connect"
ALL = ("-f", str(ALL_VALUES))


def rendered(*options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Specs of the policies and of their bindings, by name."""
    made = render(*options)
    policies = made.of("ValidatingAdmissionPolicy")
    bindings = made.of("ValidatingAdmissionPolicyBinding")
    return (
        {each["metadata"]["name"]: each["spec"] for each in policies},
        {each["spec"]["policyName"]: each["spec"] for each in bindings},
    )


def test_every_policy_denies_and_fails_closed_in_every_sandbox_namespace() -> None:
    for options, namespaces in (
        ((), ["cloister-sandboxes"]),
        (ALL, ["agents-sandboxes", "research", "builders"]),
    ):
        policies, bindings = rendered(*options)
        assert set(policies) == set(bindings) == POLICIES | {GATEWAYS}
        for name in POLICIES:
            assert policies[name]["failurePolicy"] == "Fail"
            # A condition would be a way around it.
            assert "matchConditions" not in policies[name]
            assert bindings[name]["validationActions"] == ["Deny"]
            assert bindings[name]["matchResources"] == {
                "namespaceSelector": {
                    "matchExpressions": [
                        {
                            "key": "kubernetes.io/metadata.name",
                            "operator": "In",
                            "values": namespaces,
                        }
                    ]
                }
            }
            for each in policies[name]["validations"]:
                assert each["message"]


def test_who_forwards_ports_in_the_releases_namespace_comes_into_no_gateway() -> None:
    made = render()
    (gateway,) = (
        each["metadata"]["name"]
        for each in made.of("Deployment")
        if "egress-gateway" in each["metadata"]["name"]
    )
    policies, bindings = rendered()
    (only,) = policies[GATEWAYS]["validations"]
    assert f"!request.name.startsWith('{gateway}-') ||" in only["expression"]
    assert policies[GATEWAYS]["failurePolicy"] == "Fail"
    assert bindings[GATEWAYS]["validationActions"] == ["Deny"]
    assert bindings[GATEWAYS]["matchResources"]["namespaceSelector"]["matchLabels"] == {
        "kubernetes.io/metadata.name": made.of("Deployment")[0]["metadata"]["namespace"]
    }
    policies, _ = rendered("--set", "egress.gateway.enabled=false")
    assert GATEWAYS not in policies


def test_who_the_values_name_is_let_through() -> None:
    policies, _ = rendered(*ALL)
    (connect,) = policies["cloister-sandbox-connect"]["validations"]
    assert "g in ['oncall']" in connect["expression"]
    assert (
        "g in ['platform-team']"
        in policies["cloister-sandbox-rules"]["validations"][0]["expression"]
    )
    for name in ("cloister-sandbox-pod-changes", "cloister-sandbox-pod-status"):
        assert any(
            "['system:serviceaccount:calico-system:calico-node']" in each["expression"]
            for each in policies[name]["validations"]
        )


def test_without_them_the_operator_neither_looks_for_them_nor_waits() -> None:
    made = render("--set", "admission.enabled=false")
    assert not made.of("ValidatingAdmissionPolicy")
    assert not made.of("ValidatingAdmissionPolicyBinding")
    for options, expected in (
        (("--set", "admission.enabled=false"), ("false", "false")),
        (("--set", "admission.required=false"), ("true", "false")),
        ((), ("true", "true")),
    ):
        (container,) = render(*options).one("Deployment", "cloister-operator")["spec"]["template"][
            "spec"
        ]["containers"]
        env = {each["name"]: each.get("value") for each in container["env"]}
        found = env["CLOISTER_ADMISSION_POLICIES"], env["CLOISTER_ADMISSION_REQUIRED"]
        assert found == expected
