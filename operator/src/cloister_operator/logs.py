"""Log lines as JSON: one object per line, with what they are about in fields of their own.

What a task works on is said once, with `about`, and stands in every line that it logs. Nothing
logs a secret; what looks like one all the same, as when a library quotes a request, is cut out.
"""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, Literal, TextIO

FIELDS: Final = ("namespace", "environment", "session", "pod")
"""What a line may be about."""
LONGEST: Final = 8000
"""Characters of a message or a traceback."""
CUT: Final = "[cut out]"
_ABOUT: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - never changed
_SECRETS: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}",
    re.DOTALL,
)


@contextmanager
def about(**fields: str) -> Iterator[None]:
    """Lines that this task, and tasks it starts, log meanwhile are about this (see FIELDS)."""
    token = _ABOUT.set({**_ABOUT.get(), **{key: each for key, each in fields.items() if each}})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def _clean(text: str) -> str:
    return _SECRETS.sub(CUT, text)[:LONGEST]


class _About(logging.Filter):
    """Puts what the task works on into its records."""

    def filter(self, record: logging.LogRecord) -> bool:
        for key, value in _ABOUT.get().items():
            if not hasattr(record, key):
                setattr(record, key, value)
        return True


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, FIELDS, and error if there is."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _clean(record.getMessage()),
            **{key: str(getattr(record, key)) for key in FIELDS if hasattr(record, key)},
        }
        if record.exc_info:
            line["error"] = _clean(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """The same for people's eyes."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={getattr(record, key)}" for key in FIELDS if hasattr(record, key))
        when = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        line = f"{when} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        if record.exc_info:
            line += f"\n{self.formatException(record.exc_info)}"
        return _clean(line)


def set_up(level: str, form: Literal["json", "text"], stream: TextIO | None = None) -> None:
    """Make all logs of the process go to `stream` (stderr) in this form."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_About())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
