"""What clients of other versions and languages were compiled with stays as it is on the wire.

A field that gets another number or type, or an enum's value another number, is read as something
else, and nobody says so.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    MethodDescriptorProto,
)

from cloister_api.exec.v1 import exec_pb2
from cloister_api.sessions.v1 import sessions_pb2

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"
APIS = {"exec": exec_pb2.DESCRIPTOR, "sessions": sessions_pb2.DESCRIPTOR}


def described(file: FileDescriptorProto) -> Iterator[str]:
    """One line for each call, field and enum value."""
    for service in file.service:
        for call in service.method:
            yield f"{service.name}.{_call(call)}".replace(f".{file.package}.", "")
    for message in file.message_type:
        for line in _fields(message, ""):
            yield line.replace(f".{file.package}.", "")
    for enum in file.enum_type:
        yield from _values(enum, "")


def _call(call: MethodDescriptorProto) -> str:
    asked = "stream " if call.client_streaming else ""
    answered = "stream " if call.server_streaming else ""
    return f"{call.name}({asked}{call.input_type}) {answered}{call.output_type}"


def _fields(message: DescriptorProto, above: str) -> Iterator[str]:
    name = f"{above}{message.name}"
    for field in message.field:
        plain = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
        kind = field.type_name or plain
        many = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
        one = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        within = f" of {one}" if one else ""
        yield f"{name}.{field.name} = {field.number} {many}{kind}{within}"
    for inner in message.nested_type:
        yield from _fields(inner, f"{name}.")
    for enum in message.enum_type:
        yield from _values(enum, f"{name}.")


def _values(enum: EnumDescriptorProto, above: str) -> Iterator[str]:
    for value in enum.value:
        yield f"{above}{enum.name}.{value.name} = {value.number}"


@pytest.mark.parametrize("api", APIS)
def test_what_was_there_stays(api: str, update_golden: bool) -> None:
    path = GOLDEN / f"{api}.txt"
    file = FileDescriptorProto()
    APIS[api].CopyToProto(file)
    found = list(described(file))
    if update_golden:
        path.write_text("\n".join(found) + "\n")
    kept = path.read_text().splitlines()
    assert [each for each in kept if each not in found] == [], "clients still send and expect it"
    assert found == kept, "make golden; for what is new in the exec server, API_GENERATION grows"
