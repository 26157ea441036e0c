"""The proxy itself does what the schedules say: else the runs behind it would prove nothing."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest

from support.fault_proxy import Fault, FaultProxy, Kind, Way, fault_proxy, schedule

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """In front of a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, fault_proxy(server.sockets[0].getsockname()[1]) as made:
        yield made


async def connect(proxy: FaultProxy) -> Pair:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_what_is_not_due_passes(proxy: FaultProxy) -> None:
    reader, writer = await connect(proxy)
    content = random.Random(1).randbytes(300_000)
    proxy.arm([Fault(Kind.RESET, Way.UP, after_bytes=len(content) + 1)])
    writer.write(content)
    assert await reader.readexactly(len(content)) == content
    assert proxy.happened.total() == 0
    writer.close()


@pytest.mark.parametrize("way", list(Way))
async def test_a_reset_comes_at_its_byte_and_refuses_who_comes_next(
    proxy: FaultProxy, way: Way
) -> None:
    proxy.arm([Fault(Kind.RESET, way, after_bytes=1000, refused=1)])
    reader, writer = await connect(proxy)
    writer.write(bytes(5000))
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(5000)
    refused, _ = await connect(proxy)
    with pytest.raises(ConnectionResetError):
        await refused.read(1)
    reader, writer = await connect(proxy)
    writer.write(b"fine")
    assert await reader.readexactly(4) == b"fine"
    writer.close()


async def test_a_close_delivers_what_came_before_it(proxy: FaultProxy) -> None:
    proxy.arm([Fault(Kind.CLOSE, Way.DOWN, after_bytes=1000)])
    reader, writer = await connect(proxy)
    writer.write(bytes(5000))
    assert await reader.read() == bytes(1000)
    writer.close()


@pytest.mark.parametrize("kind", [Kind.STALL, Kind.DELAY])
async def test_nothing_is_lost_in_a_stall_or_delay(proxy: FaultProxy, kind: Kind) -> None:
    proxy.arm([Fault(kind, Way.UP, after_bytes=1000, seconds=0.05)])
    reader, writer = await connect(proxy)
    content = random.Random(2).randbytes(5000)
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(content)
    assert await reader.readexactly(5000) == content
    assert loop.time() - began >= 0.05
    assert proxy.happened == {kind: 1}
    writer.close()


async def test_a_duplicate_sends_the_last_segment_again(proxy: FaultProxy) -> None:
    proxy.arm([Fault(Kind.DUPLICATE, Way.UP, after_bytes=3)])
    reader, writer = await connect(proxy)
    writer.write(b"abcdef")
    assert await reader.readexactly(9) == b"abcabcdef"
    writer.close()


async def test_a_fault_of_time_comes_without_traffic(proxy: FaultProxy) -> None:
    reader, writer = await connect(proxy)
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    proxy.arm([Fault(Kind.CLOSE, Way.UP, after_seconds=0.01)])
    assert await reader.read() == b""
    writer.close()


def test_a_seed_draws_the_same_schedule_every_time() -> None:
    def drawn(seed: int) -> list[tuple[Fault, ...]]:
        chance = random.Random(seed)
        return [schedule(chance, 10_000, 1.0) for _ in range(200)]

    assert drawn(1) == drawn(1) != drawn(2)
    kinds = {fault.kind for faults in drawn(1) for fault in faults}
    assert kinds == set(Kind)
    assert any(fault.seconds > 1.1 for faults in drawn(1) for fault in faults)
