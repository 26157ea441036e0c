"""The rights that the chart gives, written out: a new one has to be written down here too."""

from typing import Any

import pytest

from support.chart import ALL_VALUES, Rendered, render

Rights = set[tuple[str, str, str, str]]
"""API group, resource, its name or empty for any, verb."""

OPERATOR_CLUSTER: Rights = {
    *(
        ("cloister.dev", resource, "", verb)
        for resource in ("environments", "sessions")
        for verb in ("get", "list", "watch")
    ),
    ("cloister.dev", "environments/status", "", "patch"),
    ("cloister.dev", "sessions/status", "", "patch"),
    *(("cloister.dev", "sessions", "", verb) for verb in ("create", "patch", "delete")),
    ("", "namespaces", "", "get"),
    *(
        (group, resource, "", verb)
        for group, resource in (
            ("", "nodes"),
            ("", "services"),
            ("networking.k8s.io", "ingresses"),
            ("networking.k8s.io", "servicecidrs"),
        )
        for verb in ("list", "watch")
    ),
    ("authentication.k8s.io", "tokenreviews", "", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "", "create"),
}
OPERATOR_SANDBOXES: Rights = {
    *(("", "pods", "", verb) for verb in ("get", "list", "watch", "create", "patch", "delete")),
    *(("", "secrets", "", verb) for verb in ("get", "create", "delete")),
    *(("", "persistentvolumeclaims", "", verb) for verb in ("get", "create", "patch")),
    ("", "configmaps", "", "get"),
    *(
        ("networking.k8s.io", "networkpolicies", name, verb)
        for name in (
            "cloister-default-deny",
            "cloister-exec-ingress",
            "cloister-egress-gateway",
            "cloister-egress-unrestricted",
        )
        for verb in ("create", "patch")
    ),
    *(("", "events", "", verb) for verb in ("create", "list", "patch")),
}
OPERATOR_RELEASE: Rights = {
    *(("", "secrets", "cloister-ca", verb) for verb in ("get", "patch")),
    ("", "secrets", "", "create"),
    *(("", "secrets", "cloister-egress-gateway", verb) for verb in ("get", "patch")),
    *(("", "pods", "", verb) for verb in ("list", "watch", "delete")),
    *(
        ("networking.k8s.io", "networkpolicies", "cloister-egress-gateway-internet", verb)
        for verb in ("create", "patch")
    ),
    *(("", "configmaps", "cloister-client-config", verb) for verb in ("create", "patch")),
    *(("", "services", name, "get") for name in ("cloister", "cloister-egress-gateway")),
    ("coordination.k8s.io", "leases", "", "create"),
    *(("coordination.k8s.io", "leases", "cloister-operator", verb) for verb in ("get", "patch")),
}
OPERATOR_DEFAULT: Rights = {
    *(("discovery.k8s.io", "endpointslices", "", verb) for verb in ("list", "watch")),
}
WORKER: Rights = {
    *(("cloister.dev", "environments", "", verb) for verb in ("get", "list", "watch")),
    *(
        ("cloister.dev", "sessions", "", verb)
        for verb in ("get", "list", "watch", "create", "update", "delete")
    ),
    ("cloister.dev", "sessions/exec", "", "create"),
}
EVERYONE: Rights = {("", "configmaps", "cloister-client-config", "get")}
HELM_TEST: Rights = {
    *(("cloister.dev", "environments", "", verb) for verb in ("get", "create", "delete")),
    *(("cloister.dev", "sessions", "", verb) for verb in ("get", "create", "delete")),
    ("cloister.dev", "sessions/exec", "", "create"),
}


def rights(role: dict[str, Any]) -> Rights:
    """What a role allows, one right at a time."""
    return {
        (group, resource, name, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def granted(rendered: Rendered, subject: str) -> dict[tuple[str, str], Rights]:
    """What is bound to a subject, by namespace (empty: the cluster) and role."""
    found: dict[tuple[str, str], Rights] = {}
    for binding in rendered.of("RoleBinding") + rendered.of("ClusterRoleBinding"):
        if subject not in [each["name"] for each in binding["subjects"]]:
            continue
        ref, namespace = binding["roleRef"], binding["metadata"].get("namespace", "")
        role = rendered.one(ref["kind"], ref["name"], namespace or None)
        found[namespace, ref["name"]] = rights(role)
    return found


def test_the_operators_rights() -> None:
    assert granted(render(), "cloister-operator") == {
        ("", "cloister-operator"): OPERATOR_CLUSTER,
        ("cloister-system", "cloister-operator"): OPERATOR_RELEASE,
        ("cloister-sandboxes", "cloister-operator"): OPERATOR_SANDBOXES,
        ("default", "cloister-operator"): OPERATOR_DEFAULT,
    }


def test_workers_rights() -> None:
    expected = {("cloister-sandboxes", "cloister-worker"): WORKER}
    assert granted(render(), "cloister-worker") == expected
    bound = granted(render("-f", str(ALL_VALUES)), "worker")
    assert bound == {
        (each, "cloister-worker"): WORKER for each in ("agents-sandboxes", "research", "builders")
    }
    assert granted(render("--set", "rbac.workers=false"), "cloister-worker") == {}


def test_what_everyone_may_read() -> None:
    expected = {("cloister-system", "cloister-client-config"): EVERYONE}
    assert granted(render(), "system:authenticated") == expected


def test_the_tests_rights() -> None:
    expected = {("cloister-sandboxes", "cloister-helm-test"): HELM_TEST}
    assert granted(render(), "cloister-helm-test") == expected


@pytest.mark.parametrize("options", [(), ("-f", str(ALL_VALUES))], ids=["default", "all-values"])
def test_no_right_is_a_wildcard(options: tuple[str, ...]) -> None:
    rendered = render(*options)
    roles = rendered.of("Role") + rendered.of("ClusterRole")
    assert len(roles) >= 5
    for role in roles:
        for right in rights(role):
            assert "*" not in right, (role["metadata"]["name"], right)
        assert all(set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"}
                   for rule in role["rules"])  # fmt: skip


def test_nobody_may_list_secrets_or_run_commands_through_the_api_server() -> None:
    rendered = render()
    every = {right for role in rendered.of("Role") + rendered.of("ClusterRole")
             for right in rights(role)}  # fmt: skip
    forbidden = {("", "secrets", "", "list"), ("", "secrets", "", "watch")}
    assert not every & forbidden
    assert not [right for right in every if right[1] in ("pods/exec", "pods/portforward")]
