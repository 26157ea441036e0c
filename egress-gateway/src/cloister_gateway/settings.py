"""The gateway's settings: CLOISTER_GATEWAY_* environment variables that the chart sets."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "CLOISTER_GATEWAY_"
SPARE_DESCRIPTORS = 1024
"""For helpers, and connections that are being made."""
PER_CONNECTION = 9 / 4
"""Two sides, and for every eighth connection a pipe of haproxy's to splice with."""


class SettingsError(Exception):
    """A setting is wrong; the message names its variable."""


@dataclass(frozen=True)
class Settings:
    """Bounds of one gateway pod; field names are the variables' names without the prefix."""

    max_connections: int = 20_000
    """Connections of all sources together."""
    max_connections_per_source: int = 256
    """Connections that one source has at a time; more are refused at once."""
    connections_per_10s: int = 1000
    """Connections that one source opens in ten seconds; more are refused at once."""
    connections_per_s: int = 500
    """New connections of all sources in a second, above which who opens most is refused, and at
    half as many again everybody who opens many: a gateway decides some thousand."""
    unread_mib: int = 384
    """Mebibytes of memory that the sockets of all containers hold together: above that, connections
    end whose sandboxes do not take what comes for them. Each container must have room for it."""
    idle_seconds: int = 3600
    """A connection on which nothing moves ends after this time."""
    threads: int = 1
    """Threads of haproxy."""
    by_name: bool = True
    """Whether clients that know of no proxy are served."""
    log_level: str = "INFO"

    @property
    def scarce(self) -> int:
        """With more connections than these there is only room for sources that have few."""
        return self.max_connections * 3 // 4

    @property
    def share(self) -> int:
        """Connections that any source may have then."""
        return max(1, self.max_connections_per_source // 16)

    @property
    def pace(self) -> int:
        """Connections that any source may open in ten seconds, however many others do."""
        return max(1, self.connections_per_10s // 16)

    @property
    def haste(self) -> int:
        """Connections in ten seconds of those who are refused first: so nobody alone has others
        refused.
        """
        return max(1, self.connections_per_10s // 4)

    @property
    def by_name_per_s(self) -> int:
        """What is `connections_per_s` to clients that know of no proxy: they take more."""
        return max(1, self.connections_per_s // 4)

    @property
    def descriptors(self) -> int:
        """File descriptors that a process needs for so many connections."""
        return int(PER_CONNECTION * self.max_connections) + SPARE_DESCRIPTORS

    def within(self, descriptors: int) -> "Settings":
        """These settings, with as many connections as so many file descriptors are enough for."""
        most = max(1, int((descriptors - SPARE_DESCRIPTORS) / PER_CONNECTION))
        return dataclasses.replace(self, max_connections=min(self.max_connections, most))

    @classmethod
    def load(cls, environment: Mapping[str, str]) -> "Settings":
        """Read them; raises SettingsError for one that is no number above 0, true or false."""
        given: dict[str, int | bool | str] = {}
        for each in dataclasses.fields(cls):
            variable = PREFIX + each.name.upper()
            text = environment.get(variable)
            if text is None:
                continue
            if each.type is str:
                given[each.name] = text
            elif each.type is bool:
                if text not in ("true", "false"):
                    raise SettingsError(f"{variable} must be true or false: {text!r}")
                given[each.name] = text == "true"
            elif text.isascii() and text.isdigit() and 0 < int(text) <= 1_000_000:
                given[each.name] = int(text)
            else:
                raise SettingsError(f"{variable} must be a whole number, 1 to 1000000: {text!r}")
        settings = cls(**given)  # type: ignore[arg-type] # checked above, field by field
        if settings.log_level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise SettingsError(f"{PREFIX}LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR")
        return settings
