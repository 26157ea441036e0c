"""How many exec servers are dialed at a time, and who waits for whom."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from cloister_operator.identity import Authority
from cloister_operator.sandboxes import PodAddress, Sandboxes, SandboxInfo, dialer
from support.eventually import until

MANY = 3 * dialer.DIALS
SESSION = "11111111-2222-3333-4444-555555555555"


class Network:
    """Pods that accept no connection until they may, and how many are tried at a time."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.now = self.most = 0
        self.answers = asyncio.Event()

    async def accepts(self, pod: PodAddress, seconds: float) -> bool:
        """In place of links.accepts; `seconds` are not kept."""
        assert seconds > 0
        self.tried.append(pod.name)
        self.now += 1
        self.most = max(self.most, self.now)
        await self.answers.wait()
        self.now -= 1
        return False


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    made = Network()
    monkeypatch.setattr(dialer, "accepts", made.accepts)
    return made


@pytest.fixture
async def sandboxes() -> AsyncIterator[Sandboxes]:
    made = Sandboxes(Authority.create(datetime.now(UTC)))
    yield made
    await made.aclose()


class Dials:
    """Pods that are waited for."""

    def __init__(self, sandboxes: Sandboxes, group: asyncio.TaskGroup) -> None:
        self._sandboxes = sandboxes
        self._group = group
        self._tasks: list[asyncio.Task[SandboxInfo]] = []

    def begin(self, number: int, session: str = "") -> None:
        pod = PodAddress(name=f"pod-{number}", uid=f"uid-{number}", ip="127.0.0.1")
        deadline = asyncio.get_running_loop().time() + 60
        waiting = self._sandboxes.wait_warm(pod, deadline, session)
        self._tasks.append(self._group.create_task(waiting))

    def end(self) -> None:
        for each in self._tasks:
            each.cancel()


@pytest.fixture
async def dials(sandboxes: Sandboxes) -> AsyncIterator[Dials]:
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        made = Dials(sandboxes, group)
        yield made
        made.end()


async def test_hundreds_of_pods_are_not_dialed_all_at_once(
    network: Network, dials: Dials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their handshakes would take so long together that none is done in its time."""
    monkeypatch.setattr(dialer, "DIAL_TURN_SECONDS", 60.0)
    for number in range(MANY):
        dials.begin(number)
    await until(lambda: len(set(network.tried)) == dialer.DIALS)
    # A session's pod does not wait for those of pools.
    dials.begin(MANY, SESSION)
    await until(lambda: len(set(network.tried)) == dialer.DIALS + 1)
    assert f"pod-{MANY}" in network.tried
    assert network.most == dialer.DIALS + 1
    network.answers.set()
    await until(lambda: len(set(network.tried)) == MANY + 1)
    assert network.most == dialer.DIALS + 1


async def test_pods_that_do_not_answer_keep_no_others_from_their_turn(
    network: Network, dials: Dials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialer, "DIAL_TURN_SECONDS", 0.01)
    for number in range(MANY):
        dials.begin(number)
    await until(lambda: len(set(network.tried)) == MANY)
