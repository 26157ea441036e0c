"""An internet of our own, linked to the bundled cluster's node: it hears all that leaves it.

A network namespace in which every address answers is where the node's packets go that are not for
the cluster itself: clouds' metadata addresses, private networks and the public internet alike. It
has a name server, sites with certificates of a test CA, and a log of every packet. It ends with the
process that made it, and its link and routes with it. Each cluster may have one.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister_devcluster import node
from support import probe
from support.fake_internet_names import NODE, NODE6, WORLD, WORLD6

PROGRAM = Path(__file__).with_name("fake_internet_world.py")
PROBE = Path(__file__).with_name("probe.py")
LINK = "inet0"
START = 20.0
SENTINEL = 9
JSON = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """Something that reached the world.

    kind: packet (the first of a connection, or any of another protocol), dns, tls, http, raw.
    """

    kind: str
    what: JSON

    def __getattr__(self, name: str) -> Any:
        return self.what.get(name)

    def __str__(self) -> str:
        shown = {key: value for key, value in self.what.items() if key not in ("at", "headers")}
        return f"{self.kind} {json.dumps(shown)}"


class FakeInternet:
    """A running one; `fake_internet` makes it."""

    def __init__(self, holder: int, folder: Path) -> None:
        self.holder = holder
        self.folder = folder
        self._log = folder / "log.jsonl"

    @property
    def ca(self) -> str:
        """Who signs the sites' certificates, PEM."""
        return (self.folder / "ca.pem").read_text()

    @property
    def sites(self) -> Path:
        """The folder whose folder NAME holds the files of the site NAME."""
        return self.folder / "sites"

    @property
    def repositories(self) -> Path:
        """The folder of the repositories that the site GIT gives out by git's smart protocol, to
        those whose passwords are in its users.json, by name.
        """
        return self.folder / "repositories"

    def mark(self) -> int:
        """A point in the log, for `since`: after all that was on its way."""
        self._heard()
        return self._log.stat().st_size

    def since(self, mark: int) -> list[Event]:
        """All that arrived between a mark and now, but what earlier connections went on to say."""
        self._heard()
        events = [each for each in self._read(mark) if not _sentinel(each)]
        begun = {_flow(each) for each in events if each.kind == "packet"}
        return [each for each in events if each.kind in ("packet", "dns") or _flow(each) in begun]

    def probe(self, attempts: list[JSON]) -> list[JSON]:
        """Run attempts from the node, as `probe.py` does in a pod."""
        if node_of("self") == node_of(self.holder):
            return probe.attempted(attempts)
        done = subprocess.run(
            ["nsenter", f"--target={self.holder}", "--net", "--", sys.executable, str(PROBE)],
            input=json.dumps(attempts),
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found: list[JSON] = json.loads(done.stdout)
        return found

    def _heard(self) -> None:
        """Wait for a datagram of the node's own to be told: what left before it, was too.

        It shows each time that the world answers and hears.
        """
        before = self._log.stat().st_size
        found = self.probe([{"kind": "udp", "host": WORLD, "port": SENTINEL}])
        assert found[0]["reached"], "the fake internet does not answer"
        node.wait_until(
            lambda: any(_sentinel(each) for each in self._read(before)),
            START,
            "word from the fake internet",
        )

    def _read(self, mark: int) -> Iterator[Event]:
        with self._log.open() as file:
            if mark:
                # What was half written then had arrived before.
                file.seek(mark - 1)
                file.readline()
            for line in file:
                # The last one may be half written.
                if line.endswith("\n"):
                    told = json.loads(line)
                    yield Event(told.pop("kind"), told)


def node_of(pid: int | str) -> str:
    """Which network namespace a process is in."""
    return os.readlink(f"/proc/{pid}/ns/net")  # noqa: PTH115 - it names no path


def _sentinel(event: Event) -> bool:
    return event.kind == "packet" and (event.dst, event.port) == (WORLD, SENTINEL)


def _flow(event: Event) -> tuple[Any, ...]:
    return event.what.get("from"), event.dst, event.port


@contextlib.contextmanager
def fake_internet(holder: int, folder: Path) -> Iterator[FakeInternet]:
    """Link a fake internet to the node that this process holds (the host's PID of it)."""
    folder.joinpath("sites").mkdir(parents=True)
    folder.joinpath("log.jsonl").touch()
    with (folder / "errors.log").open("w") as errors:
        process = subprocess.Popen(
            ["unshare", "--net", "--", sys.executable, str(PROGRAM), str(folder)], stderr=errors
        )
        try:
            _await(process, folder / "namespace")
            _link(holder, process.pid)
            folder.joinpath("linked").touch()
            _await(process, folder / "ready")
            yield FakeInternet(holder, folder)
        finally:
            process.kill()
            process.wait()


def _await(process: subprocess.Popen[bytes], path: Path) -> None:
    def there() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the fake internet ended: {path.parent}/errors.log")
        return path.exists()

    node.wait_until(there, START, f"the fake internet's {path.name}")


def _link(holder: int, world: int) -> None:
    inside = _inside(holder)
    inside(f"link add {LINK} type veth peer name eth0 netns {world}")
    inside(f"address add {NODE}/30 dev {LINK}")
    inside(f"-6 address add {NODE6}/126 dev {LINK} nodad")
    inside(f"link set {LINK} up")
    outside = _inside(world)
    outside(f"address add {WORLD}/30 dev eth0")
    outside(f"-6 address add {WORLD6}/126 dev eth0 nodad")
    outside("link set eth0 up")
    outside(f"route add default via {NODE}")
    # More exact than the node's default route, and less than those to the cluster.
    # The node goes on to call itself what it did: connections to Services outlive this link.
    itself = json.loads(inside("-json -4 address show eth0"))[0]["addr_info"][0]["local"]
    inside(f"route add 0.0.0.0/1 via {WORLD} src {itself}")
    inside(f"route add 128.0.0.0/1 via {WORLD} src {itself}")
    inside(f"-6 route add default via {WORLD6} dev {LINK}")


def _inside(pid: int) -> Callable[[str], str]:
    """`ip` in the network namespace of a process."""

    def run(words: str) -> str:
        command = ["nsenter", f"--target={pid}", "--net", "--", "ip", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {words}: {done.stderr}"
        return done.stdout

    return run
