"""Log lines: what they are about, and what must not be in them."""

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cloister_operator import logs
from support.fake_api import Connection, Fault, Write
from support.fake_operator import World
from support.operator_objects import NAMESPACE

log = logging.getLogger("cloister_operator.tests")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where all logs of the process go, as JSON."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    made = io.StringIO()
    logs.set_up("INFO", "json", made)
    yield made
    root.handlers[:] = before
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(each) for each in stream.getvalue().splitlines()]


def test_a_line_says_what_it_is_about(stream: io.StringIO) -> None:
    with logs.about(namespace="ns", session="s1"):
        log.info("a %s\nword", "second")
        with logs.about(pod="p"):
            log.warning("deeper")
    log.info("outside")
    first, second, third = lines(stream)
    assert first["message"] == "a second\nword"
    assert (first["level"], first["logger"]) == ("INFO", "cloister_operator.tests")
    assert first["time"].endswith("+00:00")
    assert (first["namespace"], first["session"]) == ("ns", "s1")
    assert "pod" not in first
    assert (second["session"], second["pod"]) == ("s1", "p")
    assert not set(logs.FIELDS) & third.keys()


async def test_tasks_do_not_mix_what_they_are_about(stream: io.StringIO) -> None:
    async def work(name: str) -> None:
        with logs.about(session=name):
            await asyncio.sleep(0)
            log.info("of %s", name)

    await asyncio.gather(*(work(f"s{index}") for index in range(5)))
    assert [each["message"] for each in lines(stream)] == [
        f"of {each['session']}" for each in lines(stream)
    ]


def test_an_error_comes_with_its_traceback_in_one_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("of the test")
    except ValueError:
        log.exception("failed")
    (line,) = lines(stream)
    assert line["error"].endswith("ValueError: of the test")
    assert len(stream.getvalue().splitlines()) == 1


KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIA==\n-----END EC PRIVATE KEY-----"
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("secret", "part"),
    [
        (KEY, "MHcCAQ"),
        (KEY[:45], "MHcCAQ"),
        (TOKEN, "c2lnbmF0"),
        ("Bearer 0123456789abcdef", "6789abc"),
    ],
)
def test_what_looks_like_a_secret_is_cut_out(stream: io.StringIO, secret: str, part: str) -> None:
    assert part in secret
    log.error("request was %s", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        log.exception("and so")
    assert part not in stream.getvalue()
    assert all(logs.CUT in json.dumps(each) for each in lines(stream))


def test_long_lines_are_cut(stream: io.StringIO) -> None:
    log.info("x" * 100_000)
    assert len(lines(stream)[0]["message"]) == logs.LONGEST


def test_text_is_for_peoples_eyes() -> None:
    record = logging.LogRecord("c", logging.INFO, "f", 1, "word %s", (TOKEN,), None)
    record.session = "s1"
    line = logs.TextFormatter().format(record)
    assert line.endswith(f"INFO c: word {logs.CUT} session=s1")


async def test_lines_about_a_pod_name_it(
    stream: io.StringIO, make_world: Callable[..., World]
) -> None:
    """The API server is busy when the pod is to be labelled: whoever follows it says so."""
    world = make_world()
    busy = iter([Fault.BUSY])

    def fault(_number: int, write: Write) -> Fault | None:
        return next(busy, None) if (write.verb, write.plural) == ("patch", "pods") else None

    connection = Connection(world.cluster, fault)
    world.apply_environment(pool={"size": 1})
    operator = world.start(connection)
    await operator.until(lambda: world.pool_is(1))
    (pod,) = world.pods()
    name = pod["metadata"]["name"]
    said = [each for each in lines(stream) if name in each["message"]]
    assert said
    wanted = {"namespace": NAMESPACE, "environment": "py", "pod": name}
    assert all(each.items() >= wanted.items() for each in said)
