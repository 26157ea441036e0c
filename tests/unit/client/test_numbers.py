"""Numbers that no call takes: refused by the name of their argument, before anything is sent."""

import math
from collections.abc import Callable
from typing import Any

import pytest

import cloister
from cloister import _numbers

TOO_SMALL: dict[str, Callable[[cloister.Session], object]] = {
    "first": lambda session: session.files.read_text("f", first=-1),
    "last": lambda session: session.files.read_text("f", last=0),
    "max_bytes": lambda session: session.files.read_text("f", max_bytes=-1),
    "limit": lambda session: session.files.glob("*", limit=-1),
    "context_lines": lambda session: session.files.grep("x", context_lines=-1),
    "max_matches": lambda session: session.files.grep("x", max_matches=0),
    "timeout": lambda session: session.files.grep("x", timeout=-1),
    "depth": lambda session: session.list_files("/workspace", depth=0),
    "mode": lambda session: session.write_bytes("f", b"", mode=-1),
    "budget": lambda session: session.call("bash", {"command": "true"}, budget=-1),
    "columns": lambda session: session.start(["true"], terminal=(-1, 24)),
    "rows": lambda session: session.start(["true"], terminal=(80, -1)),
    "head_bytes": lambda _: cloister.OutputPolicy(head_bytes=0).to_proto(),
}
OF_BYTES: dict[str, Callable[[cloister.Session], object]] = {
    "first": lambda session: session.read_bytes("f", first=-1),
    "count": lambda session: session.read_bytes("f", count=0),
    "limit": lambda session: session.read_bytes("f", limit=-1),
}
OF_PROGRAMS: dict[str, Callable[[cloister.Process], object]] = {
    "columns": lambda process: process.resize(-1, 24),
    "rows": lambda process: process.resize(80, -1),
    "number": lambda process: process.signal(-1),
    "kill_after": lambda process: process.signal(9, kill_after=-1),
    "grace": lambda process: process.stop(grace=-1),
    "limit": lambda process: process.output(limit=-1),
    "seconds": lambda process: process.wait(math.nan),
}


@pytest.fixture
def session(client: cloister.Client) -> Any:
    with client.create_session("env") as made:
        yield made


@pytest.mark.parametrize("name", TOO_SMALL)
def test_a_number_that_is_too_small(session: cloister.Session, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be "):
        TOO_SMALL[name](session)


@pytest.mark.parametrize("name", OF_BYTES)
def test_a_range_of_bytes_that_is_none(session: cloister.Session, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least "):
        OF_BYTES[name](session)


def test_those_of_a_program(session: cloister.Session) -> None:
    with session.start(["sleep", "600"]) as process:
        for name, call in OF_PROGRAMS.items():
            with pytest.raises(ValueError, match=f"^{name} must be "):
                call(process)
        with pytest.raises(ValueError, match=r"^offset must be at least 0"):
            session.attach(process.id, -1)


def test_those_of_a_shell(session: cloister.Session) -> None:
    with session.shell() as shell, pytest.raises(ValueError, match=r"^timeout must be from 0"):
        shell.run("true", timeout=-0.5)


@pytest.mark.parametrize("name", ["wait", "idle_timeout", "max_lifetime"])
def test_those_of_a_session(client: cloister.Client, name: str) -> None:
    given: Any = {name: -1}
    with pytest.raises(ValueError, match=f"^{name} must be from 0"):
        client.create_session("env", **given)


def test_the_mode_of_a_sessions_file(client: cloister.Client) -> None:
    file = cloister.File("/workspace/f", b"", mode=-1)
    with pytest.raises(ValueError, match=r"^mode of files must be at least 0"):
        client.create_session("env", files=[file])


def test_a_number_of_lines(client: cloister.Client) -> None:
    with pytest.raises(ValueError, match=r"^tail must be at least 0"):
        next(client.logs("mine", tail=-1))


def test_a_deadline_that_would_never_come() -> None:
    with pytest.raises(ValueError, match=r"^seconds must be a number"), cloister.deadline(math.nan):
        pass


def test_what_is_no_number() -> None:
    wrong: Any = "3"
    with pytest.raises(TypeError, match=r"^first must be a whole number, not '3'"):
        _numbers.whole("first", wrong)
    with pytest.raises(TypeError, match=r"^timeout must be a number, not '3'"):
        _numbers.duration("timeout", wrong)
    nothing: Any = None
    with pytest.raises(TypeError, match=r"^timeout must be a number, not None"):
        _numbers.duration("timeout", nothing)
    half: Any = 1.5
    with pytest.raises(TypeError, match=r"^depth must be a whole number, not 1\.5"):
        _numbers.whole("depth", half)


def test_numbers_that_no_message_holds() -> None:
    with pytest.raises(ValueError, match=r"^offset must be at most 18446744073709551615"):
        _numbers.whole("offset", 10**5000)
    for each in (math.inf, 1e300, 10**400):
        with pytest.raises(ValueError, match=r"^timeout must be from 0"):
            _numbers.duration("timeout", each)
    assert _numbers.duration("timeout", 1.5).ToMilliseconds() == 1500
