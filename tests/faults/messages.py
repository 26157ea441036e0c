"""Requests for fuzzing, drawn from the API's own descriptors: mostly valid, always hostile.

What a request may make the server do is bounded by its values: commands come from a harmless list,
and absolute paths lead below the test's own directories or to what nobody can harm.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]

COMMANDS = (
    ":", "echo x", "exit 3", "cat", "sleep 0.01", "false", "echo x; sleep 0.01; echo y >&2",
    "echo 'unterminated", "echo $((1/0))", "(", "}", "printf '\\xff\\xc3'", "set -e; false",
    "sleep 0.02 &", "for i in 1 2 3; do echo $i; done", "exec true", "kill -9 $$", "\0", "x\0y",
    "echo " + "y" * 100_000, "head -c 200000 /dev/zero", "cd /; :", "",
)  # fmt: skip
ARGUMENTS: tuple[Sequence[str], ...] = (
    ["true"], ["echo", "x"], ["cat"], ["sleep", "0.01"], ["bash", "-c", "exit 3"],
    ["bash", "-c", "echo x; echo y >&2"], ["/nonexistent/program"], ["/"], [""], [],
    ["echo", "x\0y"], ["echo", "x" * 200_000], ["echo", *["a"] * 3000], ["echo", "ä\u2028"],
    ["head", "-c", "300000", "/dev/zero"], ["a" * 5000],
)  # fmt: skip
PATHS = (
    "a", "dir/b", "dir", "x/../y", "dir/../../a", ".", "", "/", "..", "link", "loop", "fifo",
    "binary", "big", "dir/new/deep/er", "a/b", "/nonexistent/x", "/proc/self/environ",
    "/proc/self/fd/0", "/dev/null", "/dev/zero", "/etc/hostname", "a\0b", "n" * 300, "d/" * 3000,
    "ä\u202e", "-rf", "*", "~", " ", "\n", "dir/", "a//b", "./a",
)  # fmt: skip
PATTERNS = ("*", "**", "**/*", "a", "[", "[!", "{a,b}", "{" * 60, "**/" * 50, "a{,b", "\\", "/a",
            "../*", "(a+)+$", "(?P<x", ".", "x" * 5000, "\0", "", "[\\w-",
            "a{1,99999}")  # fmt: skip
HOSTILE = ("", "\0", "a" * 128, "a" * 129, "a" * 70_000, "%s%n", "😀", "\x1b[2J", "--help", "\n",
           "../x", "'", '"', "$HOME", "\u202e")  # fmt: skip
IDS = ("i1", "i2", "i3")
KEYS = ("A", "PATH", "LANG", "TERM", "", "=", "a=b", "x\0", "é")
TOOLS = ("bash", "read", "write", "edit", "glob", "grep")
STRUCT_KEYS = ("file_path", "content", "old_string", "new_string", "replace_all", "pattern", "path",
               "view_range", "restart", "timeout_ms", "unknown", "")  # fmt: skip


def _mostly(usual: Strategy, odd: Strategy, weight: int = 6) -> Strategy:
    """The usual one so many times as often as the odd one."""
    return st.sampled_from([*[usual] * weight, odd]).flatmap(lambda each: each)


_TEXT = st.one_of(st.text(max_size=12), st.sampled_from(HOSTILE))
_COMMAND = st.sampled_from(COMMANDS)
_INTS = (0, 1, 2, 3, 9, 15, 18, 19, 64, 65, 80, 100, 0o777, 0o7777, 65_536, 1_000_000)
_EDGES = (2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, -1, -(2**31), -(2**63))
_RANGES: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e18, 1e300, math.nan, math.inf, -math.inf)


class Requests:
    """Strategies for the requests of one server."""

    def __init__(self, directories: Sequence[str]) -> None:
        """directories: absolute ones below which paths may lead."""
        own = [f"{directory}/{name}" for directory in directories for name in ("a", "dir/b", "")]
        self._paths: Strategy = _mostly(
            st.sampled_from(["a", "dir/b", "dir", "new", "big", "."]),
            st.one_of(st.sampled_from([*PATHS, *own]), _TEXT),
            weight=2,
        )
        ids: Strategy = _mostly(st.sampled_from(IDS), _TEXT)
        self._by_name: dict[str, Strategy] = {
            **dict.fromkeys(("path", "source", "destination", "cwd"), self._paths),
            **dict.fromkeys(("shell_id", "command_id", "process_id", "request_id"), ids),
            **dict.fromkeys(
                ("context_id", "upload_id"),
                _mostly(st.sampled_from(["", *IDS]), st.just("a" * 129)),
            ),
            "script": _COMMAND,
            "pattern": _mostly(st.sampled_from(PATTERNS), _TEXT),
            "glob": st.one_of(st.sampled_from(PATTERNS), st.just("")),
            "tool": _mostly(st.sampled_from(TOOLS), _TEXT),
            "if_etag": st.sampled_from(["", "", "x"]),
            # A program under a hostile name is refused or not found; never a real one by chance.
            "argv": st.sampled_from(ARGUMENTS),
            "env": st.dictionaries(st.sampled_from(KEYS), _TEXT, max_size=3),
            "labels": st.dictionaries(_TEXT, _TEXT, max_size=3),
            "input": _mostly(self._tool_input(), _struct(), weight=4),
        }

    def _tool_input(self) -> Strategy:
        """Inputs of tools: each of the right kind, or of any other."""
        given = {
            "command": _COMMAND,
            "file_path": self._paths,
            "path": self._paths,
            "content": _TEXT,
            "old_string": st.sampled_from(["a", "b", "line", "", "\r\n"]),
            "new_string": _TEXT,
            "replace_all": st.sampled_from([True, False, "true", None]),
            "pattern": st.sampled_from(PATTERNS),
            "view_range": st.lists(st.one_of(_number(), st.sampled_from([1, 2, -1])), max_size=3),
            "restart": st.sampled_from([True, False, "yes"]),
            "timeout_ms": st.one_of(st.sampled_from([1, 50, "100", 1000]), _number()),
        }
        return st.fixed_dictionaries({}, optional=given)

    def message(self, descriptor: Descriptor, depth: int = 0) -> Strategy:
        """A message of this type."""
        fields = {each.name: self._field(each, depth) for each in descriptor.fields}
        build = _builder(descriptor)
        required = {
            name: fields.pop(name)
            for name in ("process_id", "request_id", "shell_id", "command_id", "argv", "tool")
            if name in fields
        }
        return st.fixed_dictionaries(required, optional=fields).map(build)

    def frames(self, method: MethodDescriptor) -> st.SearchStrategy[list[bytes]]:
        """The encoded messages of one call: one, or any number when the client streams."""
        valid = self.message(method.input_type).map(_encoded)
        odd = st.one_of(valid.flatmap(_mutated), st.binary(max_size=60))
        if any(each.name == "input" for each in method.input_type.fields):
            odd = st.one_of(odd, st.sampled_from([20, 90, 101, 3000]).map(_deep))
        single = _mostly(valid, odd)
        if not method.client_streaming:
            return single.map(lambda each: [each])
        ordered = self._in_order(method)
        return _mostly(ordered, st.lists(single, max_size=6), weight=3)

    def _in_order(self, method: MethodDescriptor) -> st.SearchStrategy[list[bytes]]:
        """Frames in the order that the call wants: a program's stdin, or a whole upload."""
        if method.name == "WriteStdin":
            build = _builder(method.input_type)
            return st.builds(
                lambda name, data, eof: [
                    _encoded(build({"process_id": name, "data": data})),
                    _encoded(build({"offset": len(data), "data": data, "eof": eof})),
                ],
                st.sampled_from(IDS),
                st.binary(max_size=70),
                st.booleans(),
            )
        frame = _builder(method.input_type)
        kinds = {each.name: each.message_type for each in method.input_type.fields}
        assert kinds["start"] is not None
        assert kinds["end"] is not None
        end = _builder(kinds["end"])
        return st.builds(
            lambda start, data, size: [
                _encoded(frame({"start": start})),
                _encoded(frame({"data": data})),
                _encoded(frame({"end": end({"size": size or len(data)})})),
            ],
            self.message(kinds["start"]),
            st.one_of(st.binary(max_size=70), _tar()),
            st.sampled_from([0, 0, 0, 1, 2**63]),
        )

    def _field(self, field: FieldDescriptor, depth: int) -> Strategy:
        if field.name in self._by_name:
            return self._by_name[field.name]
        single = self._single(field, depth)
        return st.lists(single, max_size=3) if field.is_repeated else single

    def _single(self, field: FieldDescriptor, depth: int) -> Strategy:
        kind = field.cpp_type
        if field.message_type is not None:
            if field.message_type.full_name == "google.protobuf.Duration":
                return _duration(field.message_type)
            return self.message(field.message_type, depth + 1)
        if kind == FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        if kind == FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return st.one_of(st.binary(max_size=64), st.just(b"x" * 70_000), _tar())
            return _TEXT
        if field.enum_type is not None:
            known = [each.number for each in field.enum_type.values]
            return st.one_of(st.sampled_from(known), _integer(kind))
        return _integer(kind)


def _integer(kind: int) -> Strategy:
    low, high = _RANGES[kind]
    usual = st.sampled_from([each for each in _INTS if low <= each <= high])
    edges = st.sampled_from([each for each in _EDGES if low <= each <= high])
    return _mostly(usual, st.one_of(edges, st.integers(low, high)), weight=3)


def _number() -> Strategy:
    return st.one_of(st.sampled_from(_FLOATS), st.sampled_from([float(each) for each in _EDGES]))


def _duration(descriptor: Descriptor) -> Strategy:
    """Mostly short ones; also negative ones, those beyond what protobuf permits, and huge ones."""
    seconds = _mostly(
        st.sampled_from([0, 0, 0, 1, 60]),
        st.sampled_from([-1, 61, 315_576_000_000, 315_576_000_001, 2**62, 2**63 - 1, -(2**63)]),
        weight=2,
    )
    nanos = _mostly(
        st.sampled_from([0, 50_000_000, 1, 999_999_999]),
        st.sampled_from([2**31 - 1, -1, -(2**31)]),
    )
    return st.fixed_dictionaries({"seconds": seconds, "nanos": nanos}).map(_builder(descriptor))


def _struct() -> Strategy:
    """Any JSON, never with a key that would run a command."""
    leaves = st.one_of(st.none(), st.booleans(), _number(), _TEXT)
    values = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(STRUCT_KEYS), inner, max_size=3),
        ),
        max_leaves=8,
    )
    return st.dictionaries(st.sampled_from(STRUCT_KEYS), values, max_size=4)


def _tar() -> Strategy:
    """A header as tar has it, with a name of one's choice, and a wrong or right checksum."""

    def header(name: bytes, size: bytes, kind: bytes, right: bool) -> bytes:
        block = bytearray(512)
        block[: len(name[:100])] = name[:100]
        block[100:108] = b"0000644\0"
        block[124:136] = size.rjust(11, b"0") + b"\0"
        block[156:157] = kind
        block[157:159] = b".."
        block[257:265] = b"ustar\0" + b"00"
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % (sum(block) if right else 7)
        return bytes(block) + bytes(1024)

    names = st.sampled_from([b"x", b"../x", b"/x", b"a/" * 40, b"", b"\xff", b"."])
    sizes = st.sampled_from([b"0", b"1", b"77777777777", b"\xff" * 11, b"9"])
    kinds = st.sampled_from([b"0", b"1", b"2", b"3", b"5", b"6", b"L", b"x", b"g", b"\0", b"S"])
    return st.builds(header, names, sizes, kinds, st.booleans())


def _builder(descriptor: Descriptor) -> Callable[[dict[str, Any]], Message]:
    made = message_factory.GetMessageClass(descriptor)

    def build(given: dict[str, Any]) -> Message:
        message: Any = made()
        for name, value in given.items():
            field = getattr(message, name)
            if isinstance(value, Message):
                field.CopyFrom(value)
            elif isinstance(value, dict):
                field.update(value)
            elif isinstance(value, list | tuple):
                field.extend(value)
            else:
                setattr(message, name, value)
        return message  # type: ignore[no-any-return]

    return build


def _encoded(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _mutated(encoded: bytes) -> Strategy:
    """The same with its end cut off, or with bytes of its framing changed.

    Never a letter of its text: a safe command must stay the command it is.
    """
    cuts = st.integers(0, len(encoded)).map(lambda at: encoded[:at] if at < 40 else encoded)
    places = [at for at, byte in enumerate(encoded[:2000]) if byte < 0x20] or [0]

    def change(at: int, to: int) -> bytes:
        return encoded[:at] + bytes([to]) + encoded[at + 1 :]

    changes = st.builds(change, st.sampled_from(places), st.integers(0, 255))
    return st.one_of(cuts, changes, st.binary(max_size=8).map(lambda more: encoded + more))


def _deep(levels: int) -> bytes:
    """A CallRequest whose input is nested this deeply."""
    value = b"\x08\x00"  # null
    for _ in range(levels):
        entry = b"\x0a\x01x\x12" + _varint(len(value)) + value
        fields = b"\x0a" + _varint(len(entry)) + entry
        value = b"\x2a" + _varint(len(fields)) + fields
    entry = b"\x0a\x07content\x12" + _varint(len(value)) + value
    given = b"\x0a" + _varint(len(entry)) + entry
    return b"\x0a\x04deep\x12\x05write\x1a" + _varint(len(given)) + given


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
