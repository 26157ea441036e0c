"""Outputs made to keep the server busy: each is read in time that grows with its length alone."""

import tracemalloc

import pytest

from cloister_sandbox.capture import KEEP_BYTES, Tail, readable
from cloister_sandbox.outputs import MAX_PIECES, OutputStore, Piece, Policy
from cloister_sandbox.sources import STDOUT
from support.eventually import until
from support.sandbox_server import Tools

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (r"head -c 50000 /dev/zero | tr '\0' a; echo; printf 'x\ry'", "a" * 50_000 + "\ny"),
        (r"head -c 50000 /dev/zero | tr '\0' '\r'; echo; echo b", "\r" * 50_000 + "\nb"),
        (r"printf 'z%.0s\r' {1..30000}; echo b", "b"),
    ],
)
def test_a_long_line_and_one_that_is_printed_over(tools: Tools, script: str, expected: str) -> None:
    """An expression that looks for both takes minutes, in which no other call is answered."""
    assert tools.bash(script) == expected


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("10 %\r20 %\rdone\n", "done\n"),
        ("kept\r\nnext\r\r\n", "kept\r\nnext\r\r\n"),
        ("a\rb\r\nc", "b\r\nc"),
        ("\r\rx", "x"),
        ("plain\n", "plain\n"),
    ],
)
def test_what_is_printed_over_is_not_shown(printed: str, shown: str) -> None:
    assert readable(printed) == shown


def test_of_a_cut_character_no_more_is_dropped_than_it_can_have() -> None:
    """Dropping whatever looks like one would copy the rest once for each byte."""
    tail = Tail()
    tail.add(b"\x80" * (KEEP_BYTES + 1))
    assert tail.text() == "�" * (KEEP_BYTES - 3)
    cut = Tail(keep=2)
    cut.add("aé€".encode())
    assert cut.text() == ""


async def test_streams_that_take_turns_with_every_byte_take_little_memory() -> None:
    """Each byte is a piece of its own, and a piece takes a hundred times as much."""
    store = OutputStore(Policy(head=1024 * 1024, separate_stderr=True), pause, pause)
    count = 20 * MAX_PIECES
    tracemalloc.start()
    for number in range(count):
        store.add(STDOUT + number % 2, b"%d" % (number % 10))
    await until(lambda: not store._spool.late)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 2 * 200 * MAX_PIECES + 10 * count
    reader = store.reader(0)
    while isinstance(found := await reader.take(), Piece):
        number = found.start
        assert (found.stream, bytes(found.data)) == (STDOUT + number % 2, b"%d" % (number % 10))
        reader.advance(found.end)
    assert (found, reader.position) == (None, count)
    store.close()


def pause() -> None:
    """Nobody prints here."""
