"""The programs that squid asks. Standard library only: they start fast.

    python -m cloister_gateway.helper decide|sni

`decide`: may this source reach this host? By the state file, looked at for every question, so that
an answer is never older than the state. `sni`: is the TLS name the one that was asked for?
"""

import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from . import places
from .hosts import canonical
from .reports import Client, Key, Reporter, Sum
from .state import Decider, Reason, State, Verdict

_READ = 65536
_MAX_LINE = 65536
"""Longer lines are nobody's; squid's own bounds are lower."""

SENTENCES: dict[Reason, str] = {
    Reason.UNKNOWN_SOURCE: "this pod has no access to the network.",
    Reason.HOST_NOT_ALLOWED: "{host} is not allowed. Whoever owns the Environment can list it in "
    "spec.networking.allowedHosts; sessions made after that reach it.",
    Reason.PORT_NOT_ALLOWED: "port {port} is not allowed, only 443 for TLS and 80 for plain HTTP.",
    Reason.NOT_A_NAME: "only names of hosts are allowed, no addresses. Ask for it by its name.",
    Reason.ADDRESS_DENIED: "{host} is allowed, but leads to no public address, or does not exist.",
    Reason.NO_STATE: "the egress gateway has no rules yet. Try again in a moment.",
}
"""What the agent in the sandbox reads. Hosts are canonical: nothing needs quoting."""


class Rules:
    """The state file's decider, read again when the file is another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._decider = Decider(None)

    def current(self) -> Decider:
        """Decides by what the file holds now; denies everything when it cannot be read."""
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._decider = Decider(State.decode(self._path.read_bytes()))
                self._seen = seen
        except (OSError, ValueError):
            self._decider, self._seen = Decider(None), None
        return self._decider


@dataclass(frozen=True)
class Deciding:
    """Answers `address port method host port word`.

    The word says how far squid is: `named` before the name is resolved, where only a refusal is
    reported; `private` when it leads nowhere public, which is only reported; `admit` at the end.
    """

    rules: Rules
    report: Callable[[Verdict, int], None]

    def __call__(self, words: list[str]) -> str:
        if len(words) != 6:
            return "BH"
        address, client, method, host, port, step = words
        client_port = int(client) if client.isascii() and client.isdigit() else 0
        verdict = self.rules.current().decide(address, method, host, port)
        if step == "private":
            if verdict.allowed:
                verdict = replace(verdict, reason=Reason.ADDRESS_DENIED)
            self.report(verdict, client_port)
            return f'OK message="{_sentence(verdict)}"'
        if step == "admit" or not verdict.allowed:
            self.report(verdict, client_port)
        if verdict.allowed:
            return "OK"
        return f'ERR message="{_sentence(verdict)}"'


@dataclass(frozen=True)
class Sni:
    """Answers `address port sni host port word`: whether the TLS name is the host."""

    rules: Rules
    report: Callable[[Verdict, int], None]

    def __call__(self, words: list[str]) -> str:
        if len(words) != 6:
            return "BH"
        address, _, sni, host, port, _ = words
        name = canonical(host)
        if name is not None and canonical(sni) == name:
            return "OK"
        known = self.rules.current().decide(address, "CONNECT", host, port)
        self.report(replace(known, reason=Reason.NAME_MISMATCH), 0)
        return "ERR"


def _sentence(verdict: Verdict) -> str:
    return SENTENCES[verdict.reason].format(host=verdict.host, port=verdict.port)


def reply(line: bytes, answer: Callable[[list[str]], str]) -> bytes:
    """The answer to one line `channel word word ...`, words percent-encoded."""
    channel, _, rest = line.decode("ascii", "replace").strip().partition(" ")
    return f"{channel} {answer([unquote(each) for each in rest.split()])}\n".encode()


def serve(handle: Callable[[bytes], bytes], reporter: Reporter) -> None:
    """Handle lines of stdin until it ends; reports are told between them."""
    rest = b""
    while True:
        ready, _, _ = select.select([0], [], [], reporter.wait())
        if ready:
            chunk = os.read(0, _READ)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MAX_LINE:
                return
            answers = b"".join(handle(each) for each in lines)
            while answers:
                answers = answers[os.write(1, answers) :]
        reporter.flush()


def teller(reporter: Reporter) -> Callable[[Verdict, int], None]:
    """Takes a verdict and the client's port, for the reporter to tell."""

    def report(verdict: Verdict, client_port: int) -> None:
        # The pod's own health checks come from here, and are nobody's decisions.
        if verdict.address and verdict.address != places.LOOPBACK:
            key = Key(
                verdict.address, verdict.pod_uid, verdict.host, verdict.port, verdict.reason.value
            )
            now = time.time()
            reporter.pending.add(key, Sum(now, now, 1))
            if verdict.allowed:
                reporter.pending.open(Client(verdict.address, client_port), key)

    return report


def main() -> int:
    """Serve squid until it closes our stdin."""
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    folder = Path(os.environ.get("CLOISTER_GATEWAY_STATE_DIR", str(places.STATE)))
    reporter = Reporter(folder / places.REPORTS_SOCKET, time.monotonic)
    rules = Rules(folder / places.STATE_FILE)
    report = teller(reporter)
    if kind == "decide":
        deciding = Deciding(rules, report)
        serve(lambda line: reply(line, deciding), reporter)
    elif kind == "sni":
        sni = Sni(rules, report)
        serve(lambda line: reply(line, sni), reporter)
    else:
        print(f"helper: decide or sni, not {kind!r}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
