"""Programs: streams, terminals, standard input, signals, and output that can be read again."""

import hashlib
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from support.jobs import Jobs, Seen, Stream, read
from support.sandbox_server import Sandbox, Tools, refused

EXITED = exec_pb2.ExitInfo.REASON_EXITED
TIMED_OUT = exec_pb2.ExitInfo.REASON_TIMED_OUT
SIGNALLED = exec_pb2.ExitInfo.REASON_SIGNALLED
TERMINAL = exec_pb2.TerminalSize(columns=100, rows=30)


@pytest.fixture
def jobs(claimed: Sandbox) -> Iterator[Jobs]:
    with claimed.worker() as channel:
        yield Jobs(channel)


def test_a_program_runs_without_a_shell(jobs: Jobs, claimed: Sandbox) -> None:
    seen = jobs.program("printf", "%s|", "a b", "$HOME", "*")
    assert seen.text == "a b|$HOME|*|"
    assert (seen.exited.code, seen.exited.reason) == (0, EXITED)
    assert seen.exited.wall.ToNanoseconds() > 0
    assert not seen.replayed
    assert jobs.program("pwd").text == f"{claimed.workspace}\n"
    assert jobs.program("pwd", cwd="/usr").text == "/usr\n"


def test_variables_are_added_to_the_sessions(jobs: Jobs, claimed: Sandbox) -> None:
    seen = jobs.program("env", env={"ADDED": "1", "LANG": "C"})
    lines = seen.text.splitlines()
    assert {"ADDED=1", "LANG=C", f"HOME={claimed.env['CLOISTER_HOME']}"} <= set(lines)
    assert not any("CLOISTER_IDENTITY" in each for each in lines)


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [("exit 3", 3, 0), ("exit 255", 255, 0), ("kill -SEGV $$", 0, 11), ("kill -KILL $$", 0, 9)],
)
def test_how_a_program_ends_is_told(jobs: Jobs, script: str, code: int, number: int) -> None:
    exited = jobs.bash(script).exited
    assert (exited.code, exited.signal) == (code, number)
    assert exited.reason == EXITED


def test_processor_time_and_memory_are_told(jobs: Jobs) -> None:
    # More than the server's own peak, which the kernel counts as the child's.
    script = "x = bytearray(600_000_000); sum(range(3_000_000))"
    exited = jobs.program("python3", "-c", script).exited
    assert exited.cpu.ToNanoseconds() > 10_000_000
    assert 600_000_000 < exited.max_rss_bytes < 700_000_000
    assert jobs.program("true").exited.max_rss_bytes < 600_000_000


def test_streams_can_be_told_apart_and_share_their_offsets(jobs: Jobs) -> None:
    script = "printf out; sleep 0.05; printf err >&2; sleep 0.05; printf more"
    mixed = jobs.bash(script)
    assert mixed.text == "outerrmore"
    policy = exec_pb2.OutputPolicy(separate_stderr=True)
    seen = jobs.bash(script, output=policy)
    assert seen.output(exec_pb2.Output.STREAM_STDOUT) == b"outmore"
    assert seen.output(exec_pb2.Output.STREAM_STDERR) == b"err"


@pytest.mark.parametrize(
    ("argv", "cwd", "kind", "number"),
    [
        (["no-such-program"], "", "NOT_FOUND", 2),
        (["/no/such/program"], "", "NOT_FOUND", 2),
        (["/etc/passwd/x"], "", "NOT_FOUND", 20),
        (["/etc"], "", "PERMISSION_DENIED", 13),
        (["./text"], "", "NOT_EXECUTABLE", 8),
        (["./script"], "", "NOT_FOUND", 2),
        (["true"], "/no/such/place", "BAD_CWD", 2),
        (["true"], "text", "BAD_CWD", 20),
        (["true", "x" * 3_000_000], "", "BAD_ARGUMENTS", 7),
        (["true", "nul\0"], "", "BAD_ARGUMENTS", 7),
    ],
)
@pytest.mark.parametrize("terminal", [None, TERMINAL])
def test_why_a_program_cannot_start_is_typed(
    jobs: Jobs,
    claimed: Sandbox,
    argv: list[str],
    cwd: str,
    kind: str,
    number: int,
    terminal: exec_pb2.TerminalSize | None,
) -> None:
    for name, content in (("text", "no program"), ("script", "#!/no/such/interpreter\n")):
        (claimed.workspace / name).write_text(content)
        (claimed.workspace / name).chmod(0o755)
    process_id = uuid.uuid4().hex
    seen = jobs.program(*argv, process_id=process_id, cwd=cwd, terminal=terminal)
    failed = seen.last.failed
    assert exec_pb2.ExecFailure.Kind.Name(failed.kind) == f"KIND_{kind}", failed
    assert failed.errno == number
    assert failed.message
    again = jobs.program(*argv, process_id=process_id, cwd=cwd, terminal=terminal)
    assert again.replayed
    assert again.last.failed == failed


def test_a_repeated_id_replays_and_never_runs_again(jobs: Jobs, claimed: Sandbox) -> None:
    first = jobs.bash("echo x >> ran; echo done", process_id="once")
    again = jobs.bash("echo x >> ran; echo done", process_id="once")
    assert (first.replayed, again.replayed) == (False, True)
    assert again.text == first.text == "done\n"
    assert again.exited == first.exited
    assert (claimed.workspace / "ran").read_text() == "x\n"
    with refused(grpc.StatusCode.ALREADY_EXISTS, reason="ID_CONFLICT"):
        jobs.bash("echo other", process_id="once")
    with refused(grpc.StatusCode.ALREADY_EXISTS, reason="ID_CONFLICT"):
        jobs.bash("echo x >> ran; echo done", process_id="once", stdin=True)


def test_losing_the_stream_never_stops_a_program(jobs: Jobs) -> None:
    stream = jobs.start("bash", "-c", "echo begun; read x; echo $x", process_id="lost", stdin=True)
    assert stream.output() == b"begun\n"
    stream.cancel()
    assert jobs.listed()["lost"].running
    jobs.write("lost", (0, b"word\n", False))
    assert jobs.attach("lost", 6).text == "word\n"


def test_any_number_of_readers_read_from_any_offset(jobs: Jobs) -> None:
    jobs.bash("printf 0123456789", process_id="many")
    for offset in range(11):
        assert jobs.attach("many", offset).text == "0123456789"[offset:]
    with refused(grpc.StatusCode.OUT_OF_RANGE, reason="OFFSET_BEYOND_END"):
        jobs.attach("many", 11)
    streams = [
        jobs.start("bash", "-c", "read x; seq 5000", process_id="all", stdin=True) for _ in range(8)
    ]
    jobs.write("all", (0, b"\n", True))
    expected = "".join(f"{number}\n" for number in range(1, 5001))
    assert [read(each).text for each in streams] == [expected] * 8


def test_attaching_without_following_ends_where_the_output_does(jobs: Jobs) -> None:
    start = jobs.start("bash", "-c", "echo now; read x", process_id="peek", stdin=True)
    assert start.output() == b"now\n"
    seen = jobs.attach("peek", follow=False)
    assert seen.text == "now\n"
    assert (seen.last.detached.process_id, seen.last.detached.next_offset) == ("peek", 4)
    jobs.write("peek", (0, b"", True))
    assert jobs.wait("peek").exit.code == 1


def test_detaching_at_the_start(jobs: Jobs) -> None:
    seen = jobs.bash("echo out; exit 4", process_id="away", detach=True)
    assert [each.WhichOneof("event") for each in seen.events] == ["detached"]
    assert jobs.wait("away").exit.code == 4
    assert jobs.attach("away").text == "out\n"
    assert jobs.program("no-such", detach=True).last.failed.errno == 2


def test_standard_input_is_empty_unless_it_is_asked_for(jobs: Jobs) -> None:
    assert jobs.program("cat").text == ""
    process_id = uuid.uuid4().hex
    jobs.program("cat", process_id=process_id)
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="NO_STDIN"):
        jobs.write(process_id, (0, b"x", False))


def test_standard_input_takes_each_byte_once(jobs: Jobs) -> None:
    stream = jobs.start("cat", process_id="cat", stdin=True)
    assert jobs.write("cat", (0, b"abc", False)).accepted_bytes == 3
    assert jobs.write("cat", (0, b"abc", False)).accepted_bytes == 3
    assert jobs.write("cat", (1, b"bcd", False), (4, b"e", False)).accepted_bytes == 5
    with refused(grpc.StatusCode.OUT_OF_RANGE, reason="STDIN_OFFSET"):
        jobs.write("cat", (9, b"x", False))
    state = jobs.write("cat", (5, b"f", True))
    assert (state.accepted_bytes, state.closed) == (6, True)
    assert read(stream).text == "abcdef"
    assert jobs.write("cat", (6, b"late", False)).accepted_bytes == 6


def test_much_standard_input_waits_for_its_reader(jobs: Jobs) -> None:
    data = bytes(range(256)) * 256
    frames = [(number * len(data), data, number == 49) for number in range(50)]
    stream = jobs.start("sha256sum", process_id="sum", stdin=True)
    assert jobs.write("sum", *frames).accepted_bytes == 50 * len(data)
    assert read(stream).text.startswith(hashlib.sha256(data * 50).hexdigest())


def test_a_program_that_reads_nothing_does_not_hold_the_writer(jobs: Jobs) -> None:
    stream = jobs.start("sleep", "0.3", process_id="deaf", stdin=True)
    state = jobs.write("deaf", *((number * 65536, b"x" * 65536, False) for number in range(4)))
    assert state.closed
    assert state.accepted_bytes < 4 * 65536
    assert read(stream).exited.code == 0


def test_a_terminal(jobs: Jobs) -> None:
    stream = jobs.start(
        "bash",
        "--norc",
        "-c",
        "tty; stty size; echo $TERM; read x; echo got $x",
        process_id="tty",
        terminal=TERMINAL,
    )
    assert stream.output().startswith(b"/dev/pts/")
    jobs.write("tty", (0, b"line\r", False))
    seen = read(jobs.processes.Attach(exec_pb2.AttachRequest(process_id="tty", follow=True)))
    lines = seen.text.split("\r\n")
    assert {"30 100", "xterm-256color"} <= set(lines)
    assert lines[-2:] == ["got line", ""]
    assert {each.output.stream for each in seen.events if each.HasField("output")} == {3}


def test_a_terminal_passes_keys_as_signals_and_tells_its_size(jobs: Jobs) -> None:
    script = (
        "trap 'stty size' WINCH; trap 'echo interrupted; exit 5' INT; "
        "echo up; while :; do sleep 0.02; done"
    )
    stream = jobs.start("bash", "-c", script, process_id="keys", terminal=TERMINAL)
    assert stream.line() == b"up\r\n"
    jobs.processes.Resize(
        exec_pb2.ResizeRequest(process_id="keys", size=exec_pb2.TerminalSize(columns=81, rows=25))
    )
    assert stream.line() == b"25 81\r\n"
    jobs.write("keys", (0, b"\x03", False))
    assert jobs.wait("keys").exit.code == 5
    assert jobs.attach("keys").text.endswith("interrupted\r\n")


def test_the_end_of_input_on_a_terminal(jobs: Jobs) -> None:
    stream = jobs.start("cat", process_id="eof", terminal=TERMINAL)
    assert jobs.write("eof", (0, b"half", True)).closed
    assert read(stream).exited.code == 0


def test_a_terminal_is_the_programs_own(jobs: Jobs) -> None:
    status = jobs.program("grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status", terminal=TERMINAL)
    ordinary = (1 << 31) - 1
    assert [int(line.split()[1], 16) & ordinary for line in status.text.splitlines()] == [0, 0]
    fds = jobs.program("ls", "/proc/self/fd", terminal=TERMINAL, env={"LC_CTYPE": "C"})
    assert fds.text.split() == ["0", "1", "2", "3"]
    env = jobs.program("env", terminal=TERMINAL, env={"LC_CTYPE": "C"}).text.split()
    assert [each for each in env if each.startswith("LC_")] == ["LC_CTYPE=C"]
    plain = jobs.program("sleep", "0", process_id="plain")
    assert plain.exited.code == 0
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="NOT_RUNNING"):
        jobs.processes.Resize(exec_pb2.ResizeRequest(process_id="plain", size=TERMINAL))


def started(jobs: Jobs, script: str, process_id: str) -> Stream:
    """Start a script that says `up` when it is ready."""
    stream = jobs.start("bash", "-c", script, process_id=process_id)
    assert stream.output() == b"up\n"
    return stream


def exited(stream: Stream) -> exec_pb2.ExitInfo:
    return Seen(list(stream)).exited


def test_a_signal_reaches_leader_group_or_tree(jobs: Jobs, tools: Tools) -> None:
    script = "trap 'echo caught' USR1; setsid sleep 4731 & sleep 4732 & echo up; wait; wait"
    stream = started(jobs, script, "scopes")
    jobs.signal("scopes", signal.SIGUSR1, scope=exec_pb2.SignalRequest.SCOPE_LEADER)
    assert stream.output() == b"caught\n"
    # They have been started; what says `up` does not wait until each is what it is to become.
    tools.bash("until test $(pgrep -fx 'sleep 473[12]' | wc -l) = 2; do sleep 0.01; done")
    jobs.signal("scopes", signal.SIGTERM)
    info = exited(stream)
    assert (info.signal, info.reason, info.surviving_processes) == (15, SIGNALLED, 1)
    assert tools.bash("pgrep -fx 'sleep 473[12]' -a | cut -d' ' -f2-") == "sleep 4731"
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="NOT_RUNNING"):
        jobs.signal("scopes", signal.SIGTERM)
    tools.bash("pkill -fx 'sleep 4731'")
    stream = started(jobs, "setsid sleep 4731 & echo up; wait", "tree")
    tools.bash("until pgrep -fx 'sleep 4731'; do sleep 0.01; done")
    jobs.signal("tree", signal.SIGTERM, scope=exec_pb2.SignalRequest.SCOPE_TREE)
    assert exited(stream).reason == SIGNALLED
    # Both got it; which of them ends first is the kernel's choice.
    tools.bash("while pgrep -fx 'sleep 4731'; do sleep 0.01; done")


def test_what_ignores_a_signal_is_killed_after(jobs: Jobs, tools: Tools) -> None:
    script = "trap '' TERM; setsid sleep 4733 & echo up; while :; do sleep 4733; done"
    stream = started(jobs, script, "stubborn")
    jobs.signal("stubborn", signal.SIGTERM, kill_after=0.1)
    info = exited(stream)
    assert (info.signal, info.reason) == (9, SIGNALLED)
    assert tools.bash("pgrep -fx 'sleep 4733' | wc -l") == "0"


def test_wrong_signals_are_refused(jobs: Jobs) -> None:
    jobs.program("true", process_id="over")
    for number in (0, -1, 65):
        with refused(grpc.StatusCode.INVALID_ARGUMENT, "signal"):
            jobs.signal("over", number)
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        jobs.signal("nobody", 15)


def test_time_that_is_up_ends_everything(jobs: Jobs, tools: Tools) -> None:
    seen = jobs.bash("echo before; setsid sleep 4734 & sleep 4734", timeout=1)
    assert seen.text == "before\n"
    assert (seen.exited.signal, seen.exited.reason) == (signal.SIGINT, TIMED_OUT)
    assert seen.exited.surviving_processes == 0
    assert tools.bash("pgrep -fx 'sleep 4734' | wc -l") == "0"


def test_an_interrupted_program_may_end_well(jobs: Jobs) -> None:
    seen = jobs.bash("trap 'echo saved; exit 0' INT; while :; do sleep 0.01; done", timeout=1)
    assert seen.text == "saved\n"
    assert (seen.exited.code, seen.exited.reason) == (0, TIMED_OUT)


def test_what_outlives_an_interrupt_is_terminated_then_killed(jobs: Jobs) -> None:
    script = "trap 'echo int' INT; trap 'echo term' TERM; while :; do sleep 0.01; done"
    seen = jobs.bash(script, timeout=1)
    assert [each for each in seen.text.split() if each != "Terminated"] == ["int", "term"]
    assert (seen.exited.signal, seen.exited.reason) == (9, TIMED_OUT)


def test_output_after_the_end_never_delays_the_result(jobs: Jobs, tools: Tools) -> None:
    seen = jobs.bash("echo mine; (sleep 4735; echo late) & exit 6")
    assert (seen.text, seen.exited.code) == ("mine\n", 6)
    assert seen.exited.surviving_processes == 2
    tools.bash("pkill -fx 'sleep 4735'")


def test_programs_are_listed_with_their_labels_until_they_are_released(jobs: Jobs) -> None:
    jobs.start("cat", process_id="kept", stdin=True, labels={"who": "me"})
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="RUNNING"):
        jobs.processes.Release(exec_pb2.ReleaseRequest(process_id="kept"))
    found = jobs.listed()["kept"]
    assert (list(found.argv), dict(found.labels), found.running) == (["cat"], {"who": "me"}, True)
    assert not found.HasField("exit")
    jobs.write("kept", (0, b"four", True))
    done = jobs.wait("kept")
    assert (done.running, done.exit.code, done.output_bytes) == (False, 0, 4)
    assert done == jobs.listed()["kept"]
    jobs.processes.Release(exec_pb2.ReleaseRequest(process_id="kept"))
    assert "kept" not in jobs.listed()
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        jobs.attach("kept")


def test_waiting_is_bounded(jobs: Jobs) -> None:
    jobs.start("cat", process_id="waited", stdin=True)
    assert jobs.wait("waited", 0).running
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "max_wait"):
        jobs.wait("waited", 61)
    jobs.write("waited", (0, b"", True))
    assert not jobs.wait("waited").running


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"process_id": ""}, "process_id"),
        ({"process_id": "x" * 129}, "process_id"),
        ({"argv": []}, "argv"),
        ({"argv": [""]}, "argv"),
        ({"env": {"A=B": "c"}}, "env"),
        ({"env": {"": "c"}}, "env"),
        ({"terminal": exec_pb2.TerminalSize(columns=80)}, "terminal.rows"),
        ({"terminal": exec_pb2.TerminalSize(columns=80, rows=70000)}, "terminal.rows"),
        ({"output": exec_pb2.OutputPolicy(tail_bytes=1 << 40)}, "output.tail_bytes"),
        (
            {"terminal": TERMINAL, "output": exec_pb2.OutputPolicy(separate_stderr=True)},
            "output.separate_stderr",
        ),
        ({"labels": {str(number): "" for number in range(65)}}, "labels"),
    ],
)
def test_wrong_input_names_its_field(jobs: Jobs, fields: dict[str, Any], field: str) -> None:
    request = exec_pb2.StartRequest(**{"process_id": "wrong", "argv": ["true"], **fields})
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field, "google.rpc.BadRequest"):
        read(jobs.processes.Start(request, timeout=10))


def test_binary_output_is_exact(jobs: Jobs) -> None:
    script = "import os; os.write(1, bytes(range(256)) * 4000 + '\\u20ac'.encode()[:2])"
    expected = bytes(range(256)) * 4000 + "\u20ac".encode()[:2]
    assert jobs.program("python3", "-c", script).output() == expected


def test_many_at_once(jobs: Jobs) -> None:
    streams = [jobs.start("bash", "-c", f"echo {number}; exit {number}") for number in range(60)]
    seen = [read(each) for each in streams]
    assert [(each.text, each.exited.code) for each in seen] == [
        (f"{number}\n", number) for number in range(60)
    ]


def test_offsets_of_a_long_output(jobs: Jobs) -> None:
    lines = "".join(f"{number:09}\n" for number in range(400_000)).encode()
    seen = jobs.program("seq", "-f", "%09.0f", "0", "399999", process_id="long")
    assert seen.output() == lines
    for offset in (0, 1_000_003, len(lines) - 100_000, len(lines) - 5):
        assert jobs.attach("long", offset).output() == lines[offset:]
