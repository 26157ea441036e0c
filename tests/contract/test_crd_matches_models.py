"""The CRDs, written by hand, and the models that read what passes them, also written by hand."""

import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cloister_operator import names
from cloister_operator.api import common, environment, session
from support.chart import crd_schema, render

JSON = dict[str, Any]

# Where a schema and its model differ on purpose.
# The operator reads the Session's files with the Environment's model; no schema lets git in there.
ONLY_IN_MODEL = {"sessions.spec.files[].git"}
# A session's files are copies, so that its schema has another default; see the last test.
OTHER_DEFAULT = {"sessions.spec.files[].readOnly"}
KINDS: list[tuple[str, str, type[BaseModel]]] = [
    ("environments", "spec", environment.EnvironmentSpec),
    ("environments", "status", environment.EnvironmentStatus),
    ("sessions", "spec", session.SessionSpec),
    ("sessions", "status", session.SessionStatus),
]


def alias(name: str, field: FieldInfo) -> str:
    return field.alias or name


def inner(annotation: Any) -> Any:
    """The annotation without None and without the list around it."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        parts = [each for each in typing.get_args(annotation) if each is not types.NoneType]
        return inner(parts[0]) if len(parts) == 1 else annotation
    if typing.get_origin(annotation) is list:
        return inner(typing.get_args(annotation)[0])
    return annotation


def pairs(path: str, schema: JSON, model: type[BaseModel]) -> Iterator[tuple[str, JSON, Any]]:
    """Each object of a schema with the model that reads it."""
    yield path, schema, model
    for name, field in model.model_fields.items():
        kind = inner(field.annotation)
        below = schema["properties"].get(alias(name, field))
        if below is None or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            continue
        here = f"{path}.{alias(name, field)}"
        if below["type"] == "array":
            yield from pairs(f"{here}[]", below["items"], kind)
        else:
            yield from pairs(here, below, kind)


def everything() -> Iterator[tuple[str, JSON, Any]]:
    for plural, part, model in KINDS:
        yield from pairs(f"{plural}.{part}", crd_schema(plural)["properties"][part], model)


@pytest.fixture(scope="module", name="objects")
def objects_fixture() -> list[tuple[str, JSON, Any]]:
    return list(everything())


def test_fields_are_the_same(objects: list[tuple[str, JSON, Any]]) -> None:
    assert len(objects) > 20
    for path, schema, model in objects:
        in_model = {alias(*each) for each in model.model_fields.items()}
        in_model = {each for each in in_model if f"{path}.{each}" not in ONLY_IN_MODEL}
        assert set(schema["properties"]) == in_model, path


def test_what_is_required_is_the_same(objects: list[tuple[str, JSON, Any]]) -> None:
    for path, schema, model in objects:
        required = {alias(n, f) for n, f in model.model_fields.items() if f.is_required()}
        # Statuses are the operator's own: it writes every field of a count or a condition.
        assert set(schema.get("required", [])) == required, path


def test_defaults_are_the_same(objects: list[tuple[str, JSON, Any]]) -> None:
    for path, schema, model in objects:
        if ".status" in path:
            continue
        for name, field in model.model_fields.items():
            where = f"{path}.{alias(name, field)}"
            if where in ONLY_IN_MODEL | OTHER_DEFAULT:
                continue
            in_schema = schema["properties"][alias(name, field)]
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                # Given or not, the object is the same once its own defaults are in.
                assert default == type(default)(), where
                assert in_schema.get("default", {}) == {}, where
            elif default in (None, [], {}):
                assert "default" not in in_schema, where
            else:
                assert in_schema.get("default") == default, where


def test_enums_are_the_same(objects: list[tuple[str, JSON, Any]]) -> None:
    seen = 0
    for path, schema, model in objects:
        for name, field in model.model_fields.items():
            kind = inner(field.annotation)
            if typing.get_origin(kind) is typing.Literal:
                expected = list(typing.get_args(kind))
            elif isinstance(kind, type) and issubclass(kind, StrEnum):
                expected = [each.value for each in kind]
            else:
                expected = None
            where = schema["properties"].get(alias(name, field), {})
            if expected is not None:
                assert where["enum"] == expected, f"{path}.{name}"
                seen += 1
            else:
                assert "enum" not in where, f"{path}.{name}"
    assert seen >= 7


def test_names_are_the_same() -> None:
    for plural, kind in (
        (names.ENVIRONMENTS, names.ENVIRONMENT_KIND),
        (names.SESSIONS, names.SESSION_KIND),
    ):
        crd = render().one("CustomResourceDefinition", f"{plural}.{names.GROUP}")
        assert crd["spec"]["names"]["kind"] == kind
        assert [each["name"] for each in crd["spec"]["versions"]] == [names.VERSION]


def spec_properties(plural: str) -> JSON:
    properties: JSON = crd_schema(plural)["properties"]["spec"]["properties"]
    return properties


def test_files_and_variables_read_alike_in_both_kinds() -> None:
    """What the Session's schema repeats of the Environment's is the same but for its purpose."""
    specs = [spec_properties(each) for each in ("environments", "sessions")]
    for key in ("name", "value", "secretKeyRef"):
        variables = [each["env"]["items"]["properties"][key] for each in specs]
        assert variables[0] == variables[1], key
    for key in ("content", "configMapKeyRef", "secretKeyRef"):
        files = [each["files"]["items"]["properties"][key] for each in specs]
        assert files[0] == files[1], key


def test_a_sessions_file_is_read_as_a_copy() -> None:
    """The model's default is for mounted files; the Session's schema always says otherwise."""
    files = spec_properties("sessions")["files"]["items"]
    default = files["properties"]["readOnly"]["default"]
    assert default is False
    assert common.FileSpec(path="/workspace/a", read_only=default).permissions == 0o644
