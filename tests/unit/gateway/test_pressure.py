"""Sandboxes that do not take what comes for them: no memory of others goes with it."""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_gateway import buffers, pressure
from cloister_gateway.buffers import Held
from cloister_gateway.pressure import Pressure, surplus
from cloister_gateway.reports import Client
from support.gateway_addresses import SERVER
from support.gateway_buffers import held as buffered
from support.gateway_disturbed import echo
from support.gateway_rig import until
from support.gateway_world import World, world

GREEDY = [f"10.90.0.{each}" for each in range(11, 17)]
HONEST = "10.90.0.20"
MOST_MIB = 8
EACH = 6
WHOLE = 48_000_000
"""Bytes: more than all buffers on the way hold."""
SMALL, ROOM = 60_000, 4096
"""Bytes of an answer that one buffer of the gateway holds, and of which its reader's holds few."""


def held(address: str, count: int, size: int = 100, port: int = 3128) -> list[Held]:
    return [Held(port, Client(address, 1000 + each), 0, size) for each in range(count)]


def behind(size: int) -> list[Held]:
    """What the connections of sandboxes hold behind their first sockets."""
    return [
        Held(40_000, Client("127.0.0.1", 3129), size // 2, 0),
        Held(3129, Client("127.0.0.1", 40_000), 0, size - size // 2),
    ]


def by_address(ended: set[Client]) -> Counter[str]:
    return Counter(each.address for each in ended)


def test_nobody_loses_a_connection_while_there_is_room() -> None:
    assert not surplus([*held("10.0.0.1", 9), *behind(100)], 1000)
    assert surplus([*held("10.0.0.1", 9), *behind(101)], 1000)


def test_whoever_holds_most_loses_first_until_there_is_room() -> None:
    found = [*held("10.0.0.1", 40), *held("10.0.0.2", 20, port=443), *held("10.0.0.3", 4)]
    # Of 16,000 bytes a quarter of what all hold is theirs: 64 connections of 250 bytes each.
    ended = by_address(surplus([*found, *behind(9600)], 8000))
    assert ended == {"10.0.0.1": 30, "10.0.0.2": 10}


def test_a_connection_on_which_nothing_waits_stays() -> None:
    found = [*held("10.0.0.1", 9, size=0), *held("127.0.0.1", 9), *behind(10_000)]
    assert not surplus(found, 1000)


def test_nobody_loses_a_connection_for_what_servers_do_not_take() -> None:
    upwards = [
        Held(3128, Client("10.0.0.1", 1000), 5000, 0),
        Held(40_000, Client("127.0.0.1", 3129), 0, 5000),
        Held(3129, Client("127.0.0.1", 40_000), 5000, 0),
    ]
    assert not surplus([*upwards, *held("10.0.0.1", 9)], 1000)


@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 300)), max_size=60),
    st.integers(0, 20_000),
    st.integers(1, 20_000),
)
def test_what_is_left_of_each_is_no_more_than_what_others_lost(
    sizes: list[tuple[int, int]], more: int, most: int
) -> None:
    found = [
        Held(3128, Client(f"10.0.0.{who}", 1000 + at), 0, size)
        for at, (who, size) in enumerate(sizes)
    ]
    ended = surplus([*found, *behind(more)], most)
    left: Counter[str] = Counter()
    for each in found:
        left[each.far.address] += 0 if each.far in ended else each.queued
    largest = max((each.queued for each in found), default=0)
    for address in by_address(ended):
        # Whoever loses one had most at that moment.
        assert left[address] + largest >= max(left.values())


async def test_a_look_that_fails_is_not_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    again = asyncio.Event()

    async def look(_: Pressure) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ValueError("what nobody thought of")
        again.set()

    monkeypatch.setattr(Pressure, "look", look)
    monkeypatch.setattr(pressure, "EVERY_SECONDS", 0.0)
    nothing: Any = None
    running = asyncio.create_task(Pressure(nothing, nothing, nothing, 0).run())
    async with asyncio.timeout(30):
        await again.wait()
    running.cancel()


def test_the_kernel_tells_what_sockets_hold() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = listener.getsockname()
        with socket.create_connection(here) as near, listener.accept()[0] as far:
            near.sendall(b"x" * 50_000)
            found = {each.port: each for each in buffers.every()}
            assert found[here[1]].received >= 50_000
            assert found[here[1]].far == Client(*near.getsockname())
            assert far.recv(1) == b"x"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A gateway with little memory for what nobody takes."""
    bounds = {"CLOISTER_GATEWAY_UNREAD_MIB": str(MOST_MIB)}
    with world(tmp_path_factory.mktemp("pressure"), bounds) as made:
        made.internet.names["ok.test"] = [SERVER]
        everybody = dict.fromkeys([*GREEDY, HONEST], "some")
        made.operator.apply(everybody, {"some": ("ok.test",)})
        yield made


@pytest.mark.long
@pytest.mark.parametrize("way", ["tunnel", "by name"])
def test_many_who_read_nothing_end_before_the_gateway_does(here: World, way: str) -> None:
    dial = here.client.open if way == "tunnel" else here.client.direct
    with here.client.open(HONEST, "ok.test") as honest:
        asked: list[ssl.SSLSocket] = []
        try:
            for each in GREEDY * EACH:
                asked.append(made := dial(each, "ok.test"))
                made.sendall(f"GET /{WHOLE} HTTP/1.1\r\nHost: ok.test\r\n\r\n".encode())
            until(lambda: unread(here) and buffered(here) < MOST_MIB << 20, "room", 60)
            # Who takes what comes keeps what they have, and what is new is served.
            assert echo(honest)
            assert here.client.fetch(HONEST, "ok.test")
        finally:
            for one in asked:
                one.close()


def unread(here: World) -> float:
    """How many connections ended for this."""
    line = "cloister_gateway_connections_unread_total "
    told = here.http("/metrics").partition(f"\n{line}")[2]
    return float(told.split()[0])


@pytest.mark.long
def test_what_is_left_unread_at_the_end_of_a_connection_takes_no_memory(here: World) -> None:
    """The sandbox has said all and goes on holding its end, of which it reads nothing."""
    asked = []
    try:
        for _ in range(EACH):
            here.internet.forget()
            asked.append(made := here.client.connect(HONEST, room=ROOM))
            made.sendall(f"GET http://ok.test/{SMALL} HTTP/1.1\r\nHost: ok.test\r\n\r\n".encode())
            until(lambda: here.internet.seen and here.internet.seen[0].ended.is_set(), "an answer")
            made.shutdown(socket.SHUT_WR)
        until(lambda: not left_for(here, HONEST), "the end of what nobody takes")
    finally:
        for one in asked:
            one.close()


def left_for(here: World, address: str) -> int:
    """Bytes that a gateway holds in the sockets towards a sandbox."""
    return sum(
        each.queued for each in here.space.call(buffers.every) if each.far.address == address
    )
