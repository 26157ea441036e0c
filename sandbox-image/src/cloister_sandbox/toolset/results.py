"""What a tool gives back."""

from dataclasses import dataclass, field

from ..shell import Finished

NO_OUTPUT = "(no output)"


@dataclass(frozen=True)
class Blob:
    """Bytes with a media type; shown to the model as an image or a document."""

    media_type: str
    data: bytes


@dataclass(frozen=True)
class ToolResult:
    """The outcome of one call; `text` is what the model reads unless there is a blob."""

    text: str = ""
    is_error: bool = False
    blob: Blob | None = None
    finished: Finished | None = field(default=None)
    """How the command ended; bash only."""

    @property
    def size(self) -> int:
        """Bytes that keeping this result takes, roughly."""
        return len(self.text) + (len(self.blob.data) if self.blob else 0) + 200
