"""What the agent reads of the kernel's sockets and of haproxy's table."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_gateway import refusals, sockets
from cloister_gateway.front import Front, FrontUnreachable, refused
from cloister_gateway.ranges import Ranges
from cloister_gateway.refusals import Refusals, grown
from cloister_gateway.reports import Key, Report
from cloister_gateway.state import Source, State

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
REST = "00000000:00000000 00:00000000 00000000 65532 0 1 1 0 20 4 30 10 -1"
# As little-endian machines write them.
PUBLIC, INSIDE = "0A006597", "0500420A"  # 151.101.0.10, 10.66.0.5
PUBLIC6 = "424E042A000000000000000010000000"  # 2a04:4e42::10
MAPPED = "0000000000000000FFFF00000500420A"  # ::ffff:10.66.0.5


def line(remote: str, port: int = 443, state: str = "01", local: str = "02005A0A:C350") -> str:
    return f"   0: {local} {remote}:{port:04X} {state} {REST}\n"


def found(*lines: str) -> list[str]:
    return [str(each) for each in sockets.outgoing(HEAD + "".join(lines))]


def test_connections_to_servers_are_found_with_their_far_ends() -> None:
    assert found(line(PUBLIC), line(INSIDE, 80), line(PUBLIC6), line(MAPPED)) == [
        *("151.101.0.10", "10.66.0.5", "2a04:4e42::10", "10.66.0.5")
    ]


@pytest.mark.parametrize("state", ["01", "02", "08"])
def test_what_may_still_carry_something_counts(state: str) -> None:
    assert found(line(INSIDE, state=state))


@pytest.mark.parametrize("state", ["04", "05", "06", "07", "09", "0A", "0B", "03"])
def test_what_carries_nothing_any_more_does_not(state: str) -> None:
    assert not found(line(INSIDE, state=state))


@pytest.mark.parametrize("port", [3128, 443, 3129, 3130, 3141, 7444, 8081])
def test_those_who_came_to_us_are_no_servers_whatever_their_port(port: int) -> None:
    assert not found(line(INSIDE, local=f"02005A0A:{port:04X}"))
    assert not found(line(INSIDE, port=50_000))


def test_whether_one_leads_inside(tmp_path: Path) -> None:
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(HEAD + line(PUBLIC))
    assert not sockets.leads_inside(Ranges(), (four, six))
    assert sockets.leads_inside(Ranges(["151.101.0.0/24"]), (four, six))
    six.write_text(HEAD + line(MAPPED))
    assert sockets.leads_inside(Ranges(), (four, six))


def test_this_machines_own_table_can_be_read() -> None:
    assert isinstance(sockets.leads_inside(Ranges()), bool)


@pytest.mark.parametrize(
    ("given_range", "covered"),
    [
        *(("10.1.2.0/24", True), ("10.0.0.0/7", False), ("34.2.2.3/32", False)),
        *(
            ("34.1.0.0/16", True),
            ("34.1.2.3/32", True),
            ("fd00::/8", True),
            ("2600::/16", False),
            ("::/0", False),
        ),
        *(("2001:db8:1::/48", True), ("fe80::1/128", True)),
    ],
)
def test_what_is_denied_already_is_nothing_new(given_range: str, covered: bool) -> None:
    assert Ranges(["34.1.0.0/16"]).covers(given_range) is covered


# --- refused connections -------------------------------------------------------------------------

TABLE = """# table: sandboxes, type: ipv6, size:131072, used:2
0x7f1: key=::ffff:10.90.0.20 use=256 exp=29999 shard=0 gpc0=144 conn_cur=256 conn_rate(10000)=400
0x7f2: key=fd90::11 use=0 exp=12 shard=0 gpc0=1 conn_cur=0 conn_rate(10000)=0

"""


def test_haproxys_table_is_read() -> None:
    assert refused(TABLE) == {"10.90.0.20": 144, "fd90::11": 1}
    assert refused("") == {}
    assert refused("Unknown command\n") == {}


def test_counts_that_begin_anew_are_new() -> None:
    assert grown({"a": 3, "b": 5, "c": 1}, {"a": 3, "b": 9, "d": 2}) == {"b": 4, "d": 2}
    assert grown({"a": 9}, {"a": 2}) == {"a": 2}


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_every_refusal_is_counted_once(more: list[int]) -> None:
    total, counted, seen = 0, 0, {"a": 0}
    for each in more:
        total += each
        counted += sum(grown(seen, {"a": total}).values())
        seen = {"a": total}
    assert counted == total


class Desk:
    """A Holder and a Feed."""

    state = State(sources={"10.90.0.20": Source("p", "pod-20")})

    def __init__(self) -> None:
        self.reports: list[Report] = []

    def take(self, report: Report) -> None:
        self.reports.append(report)


def test_they_are_told_of_with_their_pod_and_not_again_after_a_restart() -> None:
    desk = Desk()
    made = Refusals(desk, Front(Path("/nonexistent")), desk)  # type: ignore[arg-type]
    made.take({"10.90.0.20": 100})
    made.take({"10.90.0.20": 103, "10.90.0.99": 2})
    before, after = desk.reports
    assert not before.sums
    assert {key: each.count for key, each in after.sums.items()} == {
        Key("10.90.0.20", "pod-20", "", 0, "TooManyConnections"): 3,
        Key("10.90.0.99", "", "", 0, "TooManyConnections"): 2,
    }


async def test_a_haproxy_that_says_nothing_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    class Silent(Front):
        times = 0

        async def refused(self) -> dict[str, int]:
            self.times += 1
            if self.times == 3:
                asked.set()
            raise FrontUnreachable("silent")

    monkeypatch.setattr(refusals, "EVERY_SECONDS", 0.0)
    desk = Desk()
    made = Refusals(desk, Silent(tmp_path), desk)  # type: ignore[arg-type]
    task = asyncio.create_task(made.run())
    await asked.wait()
    task.cancel()
    assert desk.reports == []
