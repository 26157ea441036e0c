"""Manners of the CRDs that the API server does not insist on."""

from collections.abc import Iterator
from typing import Any

import pytest

from support.chart import crd_schema, render

JSON = dict[str, Any]
KINDS = ["environments", "sessions"]


def nodes(schema: JSON, path: str) -> Iterator[tuple[str, JSON]]:
    """Every part of a schema below the object's own metadata."""
    yield path, schema
    for key, each in schema.get("properties", {}).items():
        if key != "metadata":
            yield from nodes(each, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("plural", KINDS)
def test_every_field_is_described(plural: str) -> None:
    for path, node in nodes(crd_schema(plural), plural):
        assert node.get("description") or path.endswith("[]"), path


@pytest.mark.parametrize("plural", KINDS)
def test_every_input_is_bounded(plural: str) -> None:
    spec = crd_schema(plural)["properties"]["spec"]
    for path, node in nodes(spec, f"{plural}.spec"):
        kind = node.get("type")
        if kind == "array":
            assert node["maxItems"] > 0, path
            assert node["x-kubernetes-list-type"], path
        elif "additionalProperties" in node:
            assert node["maxProperties"] > 0, path
        elif (kind == "string" and "enum" not in node) or node.get("x-kubernetes-int-or-string"):
            assert node["maxLength"] > 0, path


@pytest.mark.parametrize("plural", KINDS)
def test_nothing_is_let_through_unread(plural: str) -> None:
    for path, node in nodes(crd_schema(plural), plural):
        assert "x-kubernetes-preserve-unknown-fields" not in node, path
        assert (
            node.get("type") != "object" or "properties" in node or "additionalProperties" in node
        )


@pytest.mark.parametrize("plural", KINDS)
def test_every_rule_says_what_is_wanted(plural: str) -> None:
    rules = [
        (path, rule)
        for path, node in nodes(crd_schema(plural), plural)
        for rule in node.get("x-kubernetes-validations", [])
    ]
    assert len(rules) > 10
    for path, rule in rules:
        message = rule["message"]
        field = rule.get("fieldPath", path).rpartition(".")[2].removesuffix("[]")
        named = field.lower() in message.lower() or message.startswith(("must", "exactly", "an "))
        assert named or field in ("environments", "sessions"), (path, message)
        assert "\n" not in message


@pytest.mark.parametrize(
    ("plural", "columns"),
    [
        ("environments", ["Ready", "Warm", "Claimed", "Recipe", "Age"]),
        ("sessions", ["Environment", "Phase", "Pod", "Reason", "Age"]),
    ],
)
def test_kubectl_get_shows(plural: str, columns: list[str]) -> None:
    crd = render().one("CustomResourceDefinition", f"{plural}.cloister.dev")["spec"]
    (version,) = crd["versions"]
    shown = [
        each["name"] for each in version["additionalPrinterColumns"] if not each.get("priority")
    ]
    assert shown == columns
    assert version["subresources"] == {"status": {}}
    assert crd["names"]["categories"] == ["cloister"]
    assert crd["scope"] == "Namespaced"
