"""Names that sandboxes may reach through the egress gateways, tried before a fake internet."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import cloister
from support.cluster import (
    SANDBOXES,
    SYSTEM,
    apply,
    environment,
    get,
    kubectl,
    listing,
    wait_condition,
    wait_for,
    wait_gone,
)
from support.fake_internet import FakeInternet
from support.fake_internet_names import ALLOWED, ATTACKER, EVIL, OTHERS

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE_NAME = "hosts-by-name"
EXAMPLE = ROOT / "examples" / f"03-{EXAMPLE_NAME}"
CA = "/tmp/ca.pem"
Make = Callable[..., str]


@pytest.fixture(scope="module")
def session(
    world: FakeInternet, client: cloister.Client, environments: Make
) -> Iterator["cloister.Session"]:
    made = environments(networking={"allowedHosts": [ALLOWED]})
    with client.create_session(made) as created:
        created.write(CA, world.ca)
        yield created


def test_an_allowed_host_answers(session: cloister.Session) -> None:
    assert session.bash(f"curl -sS http://{ALLOWED}/").text == f"the world: {ALLOWED}"
    secured = session.bash(f"curl -sS --cacert {CA} https://{ALLOWED}/").text
    assert secured == f"the world: {ALLOWED}"


def test_a_tool_that_knows_no_proxy_reaches_it_too(
    session: cloister.Session, world: FakeInternet
) -> None:
    bare = f"curl -sS -m 10 --noproxy '*' --cacert {CA}"
    assert session.bash(f"{bare} https://{ALLOWED}/").text == f"the world: {ALLOWED}"
    mark = world.mark()
    address = session.bash(f"getent hosts {ALLOWED}").text.split()[0]
    denied = session.bash(f"{bare} --resolve {EVIL}:443:{address} https://{EVIL}/")
    assert denied.is_error
    assert world.since(mark) == []


def test_a_denied_host_is_told_and_never_asked_for(
    session: cloister.Session, world: FakeInternet
) -> None:
    mark = world.mark()
    said = session.bash(f"curl -sS -w '%{{http_code}}' http://{EVIL}/").text
    assert said.endswith("403")
    assert f"{EVIL} is not allowed" in said
    assert session.bash(f"curl -sS https://{EVIL}/").is_error
    assert session.bash(f"curl -sS -m 3 --noproxy '*' http://{ATTACKER}/").is_error
    assert world.since(mark) == []


def test_what_was_decided_is_told(client: cloister.Client, session: cloister.Session) -> None:
    """To the worker, to people by the command and an event."""
    session.bash(f"curl -sS http://{ALLOWED}/; curl -sS http://{EVIL}/")

    def told() -> dict[str, bool] | None:
        found = {each.host: each.allowed for each in client.session_egress(session.name)}
        return found if {ALLOWED, EVIL} <= set(found) else None

    found = wait_for("both decisions", told)
    assert (found[ALLOWED], found[EVIL]) == (True, False)
    command = [sys.executable, "-m", "cloister", "-n", SANDBOXES, "session", "egress", session.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ALLOWED in done.stdout
    assert EVIL in done.stdout

    def event() -> str | None:
        for each in listing("events"):
            mine = each["involvedObject"].get("name") == session.name
            if mine and each["reason"] == "EgressDenied":
                return str(each["message"])
        return None

    assert EVIL in wait_for("an event", event)


@pytest.fixture
def example(world: FakeInternet) -> Iterator[Path]:
    """The example's Environment is there."""
    manifest = EXAMPLE / "environment.yaml"
    kubectl("apply", "-f", str(manifest), "-n", SANDBOXES)
    wait_condition("environment", EXAMPLE_NAME, "Ready")
    yield EXAMPLE
    kubectl("delete", "-f", str(manifest), "-n", SANDBOXES)
    wait_gone("environment", EXAMPLE_NAME)


def _printed(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example(example: Path) -> None:
    shown = (example / "expected.txt").read_text()
    assert _printed(sys.executable, str(example / "main.py")) == shown
    assert shown in (example / "README.md").read_text()


def test_the_readmes_commands(example: Path, name: str) -> None:
    """As they are written, but for the session's name, and with the answers that are written."""
    text = (ROOT / "README.md").read_text()
    assert (example / "environment.yaml").read_text().partition("\n")[2] in text
    transcript = text[text.index("$ cloister session create hosts-by-name") :].partition("```")[0]
    cloister_command = str(Path(sys.executable).parent / "cloister")
    for step in transcript.split("$ cloister ")[1:]:
        command, _, expected = step.partition("\n")
        words = [name if each == "mine" else each for each in shlex.split(command)]
        run = partial(_printed, cloister_command, "-n", SANDBOXES, *words)
        if words[1] == "egress":
            # Gateways tell within moments, and ages and widths are of the moment.
            wanted = sorted(line.split()[:4] for line in expected.splitlines())

            def told(run: Callable[[], str] = run, wanted: list[list[str]] = wanted) -> bool | None:
                return sorted(each.split()[:4] for each in run().splitlines()) == wanted or None

            wait_for("both decisions", told)
        else:
            assert run().strip() == expected.strip().replace("mine", name)


def test_a_change_reaches_new_sessions_alone(
    client: cloister.Client, environments: Make, world: FakeInternet
) -> None:
    made = environments(networking={"allowedHosts": [ALLOWED]})
    fetch = f"curl -sS -o /dev/null -w '%{{http_code}}' http://{OTHERS}/"
    with client.create_session(made) as old:
        assert old.bash(fetch).text == "403"
        apply(environment(made, networking={"allowedHosts": [ALLOWED, OTHERS]}))

        def changed() -> bool | None:
            with client.create_session(made) as new:
                return new.bash(fetch).text == "200" or None

        wait_for("a session that may", changed)
        assert old.bash(fetch).text == "403"


def test_unrestricted_is_the_internet_and_nothing_else(
    client: cloister.Client, environments: Make, world: FakeInternet
) -> None:
    made = environments(networking={"type": "unrestricted"})
    operator = listing("pods", "app.kubernetes.io/component=operator", SYSTEM)[0]
    service = get("service", "kubernetes", "default")
    assert service is not None
    inside = [
        f"https://{service['spec']['clusterIP']}/",
        f"http://{operator['status']['podIP']}:8080/",
        "http://169.254.169.254/",
    ]
    with client.create_session(made) as session:
        assert session.bash(f"curl -sS http://{EVIL}/").text == f"the world: {EVIL}"
        mark = world.mark()
        for each in inside:
            assert session.bash(f"curl -skS -m 3 -o /dev/null {each}").is_error, each
        assert world.since(mark) == []
