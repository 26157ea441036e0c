"""What is found in a sandbox's files and done to them, as plain, frozen values."""

from dataclasses import dataclass, field

from cloister_api.exec.v1 import exec_pb2

from ._models import Entry
from ._wire import word


@dataclass(frozen=True)
class TextSlice:
    """Lines of a text file."""

    text: str = field(repr=False)
    total_lines: int
    """Of the whole file."""
    size: int
    """Bytes of the whole file."""
    etag: str
    """The file as it was read, for an edit that must not meet another one."""
    truncated: bool
    """Whether `max_bytes` cut the text."""

    @classmethod
    def from_proto(cls, message: exec_pb2.TextSlice) -> "TextSlice":
        """The typed view of the server's message."""
        return cls(
            text=message.text,
            total_lines=message.total_lines,
            size=message.size,
            etag=message.etag,
            truncated=message.truncated,
        )


@dataclass(frozen=True)
class Replacement:
    """One replacement in a text."""

    old: str
    """Must occur exactly once, unless all of it is replaced; empty fills an empty file."""
    new: str
    everywhere: bool = False


@dataclass(frozen=True)
class EditResult:
    """A file after its edit."""

    counts: tuple[int, ...]
    """Replacements made, one number for each that was asked for."""
    entry: Entry
    diff: str = field(repr=False)
    """The change as a unified diff; empty when it would be very long."""

    @classmethod
    def from_proto(cls, message: exec_pb2.EditResult) -> "EditResult":
        """The typed view of the server's message."""
        return cls(tuple(message.counts), Entry.from_proto(message.entry), message.unified_diff)


@dataclass(frozen=True)
class GlobResult:
    """Files whose paths match a pattern."""

    entries: tuple[Entry, ...]
    """Newest first."""
    total: int
    """All that match; more than there are entries when the limit left some out."""

    @classmethod
    def from_proto(cls, message: exec_pb2.GlobResult) -> "GlobResult":
        """The typed view of the server's message."""
        return cls(tuple(Entry.from_proto(each) for each in message.entries), message.total_matches)


@dataclass(frozen=True)
class GrepLine:
    """A line that matches, or a neighbour of one."""

    path: str
    number: int
    """From 1."""
    text: str
    is_context: bool = False
    """Whether it is only a neighbour."""


@dataclass(frozen=True)
class GrepResult:
    """What a search found."""

    lines: tuple[GrepLine, ...]
    """Sorted by path and number."""
    matches: int
    files: int
    """Files with matches."""
    truncated: bool
    """Whether a bound ended the search before its end."""
    warnings: tuple[str, ...]
    """What could not be searched."""


@dataclass(frozen=True)
class Change:
    """Something that happened below a path that is watched."""

    type: str
    """`created`, `modified` or `removed`; or `overflow`: changes were missed, look for yourself."""
    path: str
    """Absolute; with `overflow` that of the watch itself."""

    @classmethod
    def from_proto(cls, message: exec_pb2.WatchEvent) -> "Change":
        """The typed view of the server's message."""
        return cls(word(exec_pb2.WatchEvent.Type, message.type, "TYPE_"), message.path)
