"""The agent's parts by themselves."""

import asyncio
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister_api.egress.v1 import egress_pb2
from cloister_gateway import front, helper, ledger, reports
from cloister_gateway.agent import first_of
from cloister_gateway.connections import MEETING_SECONDS, Connections, Ended, ended
from cloister_gateway.front import Front, FrontUnreachable
from cloister_gateway.helper import Deciding, Rules, reply
from cloister_gateway.identity import Identity, IdentityError
from cloister_gateway.ledger import Ledger
from cloister_gateway.reports import Client, Key, Reporter, Sum
from cloister_gateway.requests import InvalidField, to_state
from cloister_gateway.state import Reason, Source, Verdict
from support.certificates import TestAuthority
from support.eventually import until

# --- all of them together ------------------------------------------------------------------------


async def test_no_part_ends_alone() -> None:
    """Without the one that turns pages, nobody would be told of a decision any more."""
    others: list[str] = []

    async def lasting() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            others.append("ended")

    async def broken() -> None:
        await asyncio.sleep(0)
        raise ValueError("of a part")

    with pytest.raises(ValueError, match="of a part"):
        await first_of(lasting(), broken(), lasting())
    await until(lambda: len(others) == 2)


async def test_being_told_to_stop_ends_all() -> None:
    stopping = asyncio.Event()
    stopping.set()
    await first_of(stopping.wait(), asyncio.Event().wait())


# --- requests ------------------------------------------------------------------------------------


def request(**changes: object) -> egress_pb2.ApplyRequest:
    values: dict[str, object] = {
        "policies": [egress_pb2.Policy(id="p", hosts=["ok.test", "*.wild.test"])],
        "sources": [egress_pb2.Source(address="10.0.0.1", policy_id="p", pod_uid="u")],
        "denied_ranges": ["10.0.0.0/8"],
        **changes,
    }
    return egress_pb2.ApplyRequest(term=1, revision=2, **values)  # type: ignore[arg-type]


def source(address: str = "10.0.0.1", policy: str = "p", uid: str = "u") -> egress_pb2.Source:
    return egress_pb2.Source(address=address, policy_id=policy, pod_uid=uid)


def test_a_request_becomes_a_state() -> None:
    state = to_state(request())
    assert state.version == (1, 2)
    assert state.policies == {"p": ("ok.test", "*.wild.test")}
    assert state.sources == {"10.0.0.1": Source("p", "u")}
    assert state.denied_ranges == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("policies[0].hosts[0]", {"policies": [egress_pb2.Policy(id="p", hosts=[host])]})
        for host in (
            *(
                "",
                "*",
                "*.com",
                "OK.test",
                "ok.test.",
                "ok.test:443",
                "https://ok.test",
                "10.0.0.1",
            ),
            *("a b.test", "ok.test\n", "*.*.test", "x.*.test", "é.test", "ok.test/", "-a.test"),
        )
    ]
    + [
        ("policies[0].id", {"policies": [egress_pb2.Policy(id="")]}),
        ("policies[0].id", {"policies": [egress_pb2.Policy(id="a b")]}),
        ("policies[1].id", {"policies": [egress_pb2.Policy(id="p"), egress_pb2.Policy(id="p")]}),
        ("policies[0].hosts", {"policies": [egress_pb2.Policy(id="p", hosts=["a.b"] * 1025)]}),
        ("sources[0].address", {"sources": [source("")]}),
        ("sources[0].address", {"sources": [source("ok.test")]}),
        ("sources[0].address", {"sources": [source("127.0.0.1")]}),
        ("sources[0].address", {"sources": [source("::")]}),
        ("sources[0].address", {"sources": [source("10.0.0.1/8")]}),
        ("sources[1].address", {"sources": [source(), source("::ffff:10.0.0.1")]}),
        ("sources[0].policy_id", {"sources": [source(policy="q")]}),
        ("sources[0].pod_uid", {"sources": [source(uid="")]}),
        ("sources[0].pod_uid", {"sources": [source(uid="a b")]}),
        ("sources[0].pod_uid", {"sources": [source(uid="a\nOK")]}),
        ("denied_ranges[0]", {"denied_ranges": ["10.0.0.0/33"]}),
        ("denied_ranges[1]", {"denied_ranges": ["10.0.0.0/8", ""]}),
    ],
)
def test_a_wrong_request_is_refused_by_its_field(field: str, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidField) as caught:
        to_state(request(**changes))
    assert str(caught.value).startswith(f"{field}: ")


# --- the ledger and the reports ------------------------------------------------------------------


def key(host: str = "a.test", address: str = "10.0.0.1") -> Key:
    return Key(address, "u", host, 443, Reason.ALLOWED.value)


def test_pages_go_on_after_a_cursor() -> None:
    book = Ledger()
    for _ in range(3):
        book.add(key(), Sum(1, 1, 1))
        assert book.turn()
    assert not book.turn()
    pages, lost = book.after(1)
    assert [each.cursor for each in pages] == [2, 3]
    assert lost == 0
    assert book.after(3) == ([], 0)


def test_what_is_alike_is_summed_up() -> None:
    book = Ledger()
    book.add(key(), Sum(5, 6, 1, 10, 20))
    book.add(key(), Sum(3, 4, 2, 1, 2))
    book.turn()
    ((page,), _) = book.after(0)
    assert page.sums == {key(): Sum(3, 6, 3, 11, 22)}


def test_one_source_has_a_bound_on_hosts_and_the_others_keep_theirs() -> None:
    book = Ledger()
    for number in range(1000):
        book.add(key(f"h{number}.test"), Sum(1, 1, 1))
    book.add(key("b.test", "10.0.0.2"), Sum(1, 1, 1))
    book.turn()
    ((page,), lost) = book.after(0)
    assert len(page.sums) == ledger.MAX_HOSTS + 2
    assert page.sums[key("")].count == 1000 - ledger.MAX_HOSTS
    assert page.sums[key("b.test", "10.0.0.2")].count == 1
    assert lost == 0


def test_what_is_beyond_the_bounds_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_KEYS", 2)
    monkeypatch.setattr(ledger, "MAX_KEPT", 3)
    book = Ledger()
    for page in range(4):
        for number in range(3):
            book.add(key(f"h{number}.test", f"10.0.0.{page}"), Sum(1, 1, 1))
        book.lose(10)
        book.turn()
    pages, lost = book.after(0)
    told = sum(each.count for page in pages for each in page.sums.values())
    assert told + lost == 4 * (3 + 10)
    assert [each.cursor for each in pages] == [4]
    assert book.after(3)[1] == 11


def test_a_report_survives_its_line() -> None:
    report = reports.Report({key(): Sum(1, 2, 3, 4, 5)}, {Client("10.0.0.1", 1): key()}, 7)
    assert reports.decode(reports.encode(report)) == report


@given(st.binary())
def test_garbage_is_no_report(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        reports.decode(line)


def test_a_helper_keeps_what_it_cannot_tell_and_counts_what_it_cannot_keep(tmp_path: Path) -> None:
    now = 0.0
    reporter = Reporter(tmp_path / "socket", lambda: now)
    assert reporter.wait() is None
    for number in range(reports.MAX_PENDING + 5):
        reporter.pending.add(key(f"h{number}.test"), Sum(1, 1, 1))
    reporter.flush()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        now += reports.RETRY_SECONDS
        told, lost, accepted = {}, 0, None
        for _ in range(100):
            reporter.flush()
            now += reports.FLUSH_SECONDS
            if accepted is None:
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                stream = b""
            try:
                while part := accepted.recv(65536):
                    stream += part
            except BlockingIOError:
                pass
        assert accepted is not None
        accepted.close()
    reporter.close()
    for line in stream.splitlines():
        report = reports.decode(line)
        told.update(report.sums)
        lost += report.lost
    assert len(told) == reports.MAX_PENDING
    assert lost == 5
    assert reporter.wait() is None


# --- the helpers ---------------------------------------------------------------------------------


def test_lines_of_squid(tmp_path: Path) -> None:
    told: list[Verdict] = []
    (tmp_path / "state.json").write_bytes(to_state(request()).encode())
    answer = Deciding(Rules(tmp_path / "state.json"), lambda verdict, _: told.append(verdict))
    assert reply(b"7 10.0.0.1 999 CONNECT ok.test 443 named", answer) == b"7 OK\n"
    assert told == []
    assert reply(b"8 10.0.0.1 999 CONNECT ok.test 443 admit", answer) == b"8 OK\n"
    assert [each.reason for each in told] == [Reason.ALLOWED]
    denied = reply(b"9 10.0.0.1 999 GET evil.test 80 named", answer)
    assert denied.startswith(b'9 ERR message="evil.test is not allowed.')
    assert reply(b"1 10.0.0.1 999 GET ok%2etest%0a2%20OK 80 named", answer).count(b"\n") == 1
    for wrong in (b"", b"5", b"5 10.0.0.1", b"5 \xff \xff \xff \xff \xff \xff \xff"):
        assert b" BH\n" in reply(wrong, answer) or b" ERR " in reply(wrong, answer)


@given(st.binary(max_size=200))
def test_no_line_of_a_hostile_request_is_an_ok(line: bytes) -> None:
    answer = Deciding(Rules(Path("/nonexistent")), lambda _, __: None)
    said = reply(line.replace(b"\n", b"").replace(b"private", b""), answer)
    assert said.count(b"\n") == 1
    assert b" OK" not in said.partition(b" ")[1] + said.partition(b" ")[2][:3]


def test_bytes_are_told_of_the_host_that_a_connection_was_for() -> None:
    table = Connections()
    first, second = Client("10.0.0.1", 4000), Client("10.0.0.1", 4001)
    assert table.began({first: key("a.test")}, 1.0) == []
    assert table.over(Ended(first, 10, 20), 2.0) == (key("a.test"), Sum(2, 2, 0, 10, 20))
    # The end may be heard of first.
    assert table.over(Ended(second, 1, 2), 3.0) is None
    assert table.began({second: key("b.test")}, 4.0) == [(key("b.test"), Sum(4, 4, 0, 1, 2))]
    # What nobody admitted is forgotten, and never another connection's under the same port.
    assert table.over(Ended(first, 5, 5), 5.0) is None
    table.forget(5.0 + MEETING_SECONDS)
    assert table.began({first: key("c.test")}, 20.0) == []


def test_lines_of_haproxy() -> None:
    assert ended(b"10.0.0.1 4000 51 1000") == Ended(Client("10.0.0.1", 4000), 51, 1000)
    assert ended(b"::ffff:10.0.0.1 4000 51 1000\n") == Ended(Client("10.0.0.1", 4000), 51, 1000)
    for wrong in (b"", b"x", b"10.0.0.1 4000 51", b"10.0.0.1 4000 51 -", b"\xff 1 2 3"):
        assert ended(wrong) is None


def test_every_reason_that_denies_has_a_sentence() -> None:
    silent = {Reason.ALLOWED, Reason.NAME_MISMATCH, Reason.TOO_MANY_CONNECTIONS}
    assert set(helper.SENTENCES) == set(Reason) - silent
    for each in helper.SENTENCES.values():
        said = each.format(host="a.test", port=1)
        assert said.endswith(".")
        assert '"' not in said
        assert "\\" not in said


# --- haproxy and the identity --------------------------------------------------------------------


def test_haproxys_list_of_sessions() -> None:
    said = (
        "0x55a1: proto=tcpv4 src=10.0.0.1:4000 fe=sandboxes be=names srv=names ts=00 age=1s\n"
        "0x55a2: proto=tcpv6 src=fd90::11:4001 fe=sandboxes be=names srv=names ts=00\n"
        "0x55a3: proto=tcpv6 src=::ffff:10.0.0.2:4002 fe=sandboxes be=names srv=names ts=00\n"
        "0x55a4: proto=unix_stream src=unix:1 fe=GLOBAL be=<NONE> srv=<none> ts=00\n"
    )
    assert [(each.id, each.address, each.port) for each in front.sessions(said)] == [
        ("0x55a1", "10.0.0.1", 4000),
        ("0x55a2", "fd90::11", 4001),
        ("0x55a3", "10.0.0.2", 4002),
    ]


async def test_a_haproxy_that_is_gone_has_nothing_to_cut(tmp_path: Path) -> None:
    assert await Front(tmp_path / "nothing").cut(frozenset({"10.0.0.1"})) == 0
    assert not await Front(tmp_path / "nothing").alive()


async def test_a_haproxy_that_does_not_cut_is_told_of(tmp_path: Path) -> None:
    async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"0x1: proto=tcpv4 src=10.0.0.1:4000 fe=sandboxes be=names\n")
        writer.close()

    async with await asyncio.start_unix_server(stubborn, tmp_path / "socket"):
        with pytest.raises(FrontUnreachable):
            await Front(tmp_path / "socket").cut(frozenset({"10.0.0.1"}), seconds=0.2)
        assert await Front(tmp_path / "socket").cut(frozenset({"10.0.0.2"}), seconds=0.2) == 0


async def test_who_takes_a_bit_as_its_connection_ends_does_not_keep_it(tmp_path: Path) -> None:
    """That gives it all its time again, and an end that is told twice wakes nobody."""
    told: list[str] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        command = (await reader.readline()).decode()
        if command == "show sess\n" and len(told) < 3:
            writer.write(b"0x1: proto=tcpv4 src=10.0.0.1:4000 fe=sandboxes be=names\n")
        elif command != "show sess\n":
            told.append(command)
        writer.close()

    async with await asyncio.start_unix_server(slow, tmp_path / "socket"):
        assert await Front(tmp_path / "socket").cut(frozenset({"10.0.0.1"})) == 1
    assert ["res.w=now" in each for each in told] == [False, True, True]
    # An end looks for whom it is told of; a wake does not, and there may be nobody any more.
    assert all("shutdown session 0x1" in each and " wake" not in each for each in told)


def write_identity(folder: Path, authority: TestAuthority) -> None:
    pair = authority.issue(dns="cloister-egress-gateway")
    (folder / "tls.crt").write_bytes(pair.certificate)
    (folder / "tls.key").write_bytes(pair.private_key)
    (folder / "ca.crt").write_bytes(authority.pem)


def test_a_renewed_certificate_is_used_and_half_of_one_is_not(tmp_path: Path) -> None:
    authority = TestAuthority()
    write_identity(tmp_path, authority)
    identity = Identity(tmp_path)
    assert identity._renewed() is None
    key_of_before = (tmp_path / "tls.key").read_bytes()
    write_identity(tmp_path, authority)
    whole = (tmp_path / "tls.key").read_bytes()
    (tmp_path / "tls.key").write_bytes(key_of_before)
    assert identity._renewed() is None
    (tmp_path / "tls.key").write_bytes(whole)
    assert identity._renewed() is not None
    assert identity._renewed() is None


def test_without_an_identity_nothing_is_served(tmp_path: Path) -> None:
    with pytest.raises(IdentityError):
        Identity(tmp_path)
