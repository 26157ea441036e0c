"""Shells for programs: state that stays, output that streams, commands that are found again."""

import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from support.jobs import Jobs, Seen, read
from support.sandbox_server import Sandbox, Tools, refused

EXITED = exec_pb2.ExitInfo.REASON_EXITED
TIMED_OUT = exec_pb2.ExitInfo.REASON_TIMED_OUT
LOST = exec_pb2.ExitInfo.REASON_SHELL_LOST
CANCELLED = exec_pb2.ExitInfo.REASON_CANCELLED
SIGNALLED = exec_pb2.ExitInfo.REASON_SIGNALLED
READY, BUSY = exec_pb2.Shell.STATE_READY, exec_pb2.Shell.STATE_BUSY


class Worker(Jobs):
    """A worker that has a shell of its own."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__(channel)
        self.shell_id = uuid.uuid4().hex
        self.open(self.shell_id)

    def sh(self, script: str, **fields: Any) -> Seen:
        """Run a command in the shell to its end."""
        return read(self.run(self.shell_id, script, **fields))

    def shell(self) -> exec_pb2.Shell:
        """The shell as it is now."""
        response = self.shells.List(exec_pb2.ListShellsRequest(), timeout=30)
        return next(each for each in response.shells if each.shell_id == self.shell_id)


@pytest.fixture
def worker(claimed: Sandbox) -> Iterator[Worker]:
    with claimed.worker() as channel:
        worker = Worker(channel)
        yield worker
        worker.shells.Close(exec_pb2.CloseShellRequest(shell_id=worker.shell_id), timeout=30)


def test_state_stays_between_commands(worker: Worker) -> None:
    worker.sh("cd /usr; x=1; export y=2; f() { echo f$x$y; }")
    seen = worker.sh("pwd; f")
    assert seen.text == "/usr\nf12\n"
    assert (seen.exited.code, seen.exited.reason, seen.exited.cwd) == (0, EXITED, "/usr")
    assert worker.sh("(exit 9)").exited.code == 9
    shell = worker.shell()
    assert (shell.state, shell.cwd, shell.generation) == (READY, "/usr", 1)


def test_opening_twice_finds_the_same_shell(worker: Worker) -> None:
    worker.sh("x=kept")
    assert worker.open(worker.shell_id).generation == 1
    assert worker.sh("echo $x").text == "kept\n"
    with refused(grpc.StatusCode.ALREADY_EXISTS, reason="ID_CONFLICT"):
        worker.open(worker.shell_id, cwd="/usr")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "cwd", "google.rpc.BadRequest"):
        worker.open("nowhere", cwd="/no/such/place")
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        read(worker.run("nowhere", "true"))


def test_a_new_shell_names_its_directory_as_its_commands_do(worker: Worker) -> None:
    assert worker.shell().cwd == worker.sh("pwd").exited.cwd


def test_a_shell_has_its_own_directory_and_variables(worker: Worker) -> None:
    worker.open("own", cwd="/usr", env={"MINE": "yes"})
    assert read(worker.run("own", "echo $MINE $PWD")).text == "yes /usr\n"
    worker.shells.Close(exec_pb2.CloseShellRequest(shell_id="own"), timeout=30)
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        read(worker.run("own", "true"))


def test_output_streams_while_the_command_runs(worker: Worker) -> None:
    worker.sh("rm -f go; mkfifo go")
    stream = worker.run(worker.shell_id, "echo first; cat go; echo last", "streams")
    assert stream.output() == b"first\n"
    assert (worker.shell().state, worker.shell().running_command_id) == (BUSY, "streams")
    worker.bash("echo second > go")
    assert read(worker.run(worker.shell_id, "echo first; cat go; echo last", "streams")).text == (
        "first\nsecond\nlast\n"
    )


def test_a_busy_shell_says_with_what(worker: Worker) -> None:
    worker.sh("rm -f go; mkfifo go")
    stream = worker.run(worker.shell_id, "cat go", "long")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="SHELL_BUSY"):
        worker.sh("echo other")
    with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="command_id\x12\x04long"):
        worker.sh("echo other")
    worker.bash("echo x > go")
    assert read(stream).text == "x\n"
    assert worker.sh("echo other").text == "other\n"


def test_a_repeated_command_replays_from_an_offset(worker: Worker) -> None:
    first = worker.sh("echo x >> commands; echo done", command_id="one")
    again = worker.sh("echo x >> commands; echo done", command_id="one", resume_offset=2)
    assert (first.replayed, again.replayed) == (False, True)
    assert (first.text, again.text) == ("done\n", "ne\n")
    assert worker.sh("wc -l < commands; rm commands").text == "1\n"
    with refused(grpc.StatusCode.ALREADY_EXISTS, reason="ID_CONFLICT"):
        worker.sh("echo other", command_id="one")
    with refused(grpc.StatusCode.OUT_OF_RANGE, reason="OFFSET_BEYOND_END"):
        worker.sh("echo x >> commands; echo done", command_id="one", resume_offset=6)


def test_attaching_never_runs_a_command_that_is_not_known(worker: Worker) -> None:
    worker.sh("echo x >> attached; echo done", command_id="known")
    again = worker.sh("", command_id="known", resume_offset=2, attach_only=True)
    assert (again.text, again.replayed) == ("ne\n", True)
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        worker.sh("echo x >> attached", command_id="forgotten", attach_only=True)
    assert worker.sh("wc -l < attached; rm attached").text == "1\n"


def test_losing_the_stream_never_stops_a_command(worker: Worker) -> None:
    worker.sh("rm -f go; mkfifo go")
    worker.run(worker.shell_id, "cat go; echo ended", "lost").cancel()
    worker.bash("echo word > go")
    seen = worker.sh("cat go; echo ended", command_id="lost")
    assert (seen.text, seen.replayed) == ("word\nended\n", True)


@pytest.mark.parametrize(
    ("script", "code", "number"),
    [("exit 7", 7, 0), ("set -e; false", 1, 0), ("exec true", 0, 0), ("kill -KILL $$", 0, 9)],
)
def test_a_shell_that_ends_is_replaced(worker: Worker, script: str, code: int, number: int) -> None:
    seen = worker.sh(f"cd /usr; x=1; echo words; {script}")
    assert seen.text == "words\n"
    assert (seen.exited.code, seen.exited.signal, seen.exited.reason) == (code, number, LOST)
    assert worker.shell().generation == 2
    assert worker.sh("echo [$x]").text == "[]\n"


@pytest.mark.parametrize(
    "script",
    [
        "echo begun; sleep SHORT; echo on",
        "echo begun; while :; do :; done",
        "f() { echo begun; sleep SHORT; }; f && echo on",
        "echo begun; (setsid sleep SHORT &); sleep SHORT | cat; echo on",
        "echo begun; x=$(sleep SHORT); echo on",
    ],
)
def test_a_shell_survives_a_command_whose_time_is_up(
    worker: Worker, tools: Tools, script: str
) -> None:
    # Durations that no other run on this machine sleeps for.
    ends, stays = (4_000_000 + uuid.uuid4().int % 1_000_000 + each for each in (0, 1_000_000))
    worker.sh(f"kept=yes; sleep {stays} & cd /usr")
    seen = worker.sh(script.replace("SHORT", f"{ends}"), timeout=1)
    assert (seen.text, seen.exited.reason) == ("begun\n", TIMED_OUT)
    assert seen.exited.code == 130
    assert worker.sh("echo $kept $PWD").text == "yes /usr\n"
    assert worker.shell().generation == 1
    assert tools.bash(f"pgrep -fx 'sleep {ends}' | wc -l") == "0"
    assert tools.bash(f"pgrep -fx 'sleep {stays}' | wc -l") == "1"


def test_a_command_that_ignores_interrupts_is_terminated(worker: Worker) -> None:
    seen = worker.sh("x=1; bash -c 'trap \"\" INT; echo up; sleep 4743'; echo on", timeout=1)
    assert (seen.text, seen.exited.reason) == ("up\n", TIMED_OUT)
    assert worker.sh("echo [$x]").text == "[1]\n"


def test_a_shell_that_cannot_be_interrupted_is_replaced(worker: Worker, tools: Tools) -> None:
    seen = worker.sh("trap '' INT TERM; echo up; while :; do sleep 4744; done", timeout=1)
    assert seen.exited.reason == TIMED_OUT
    assert worker.sh("echo alive").text == "alive\n"
    assert worker.shell().generation == 2
    assert tools.bash("pgrep -fx 'sleep 4744' | wc -l") == "0"


def test_a_command_may_outlive_its_time_as_a_process(worker: Worker) -> None:
    worker.sh("rm -f go; mkfifo go; x=1; cd /usr")
    script = f"echo begun; cat {worker.program('pwd').text.strip()}/go; exit 3"
    fields: dict[str, Any] = {"timeout": 1, "on_timeout": exec_pb2.ON_TIMEOUT_DETACH}
    seen = worker.sh(script, command_id="outlives", **fields)
    assert seen.text == "begun\n"
    assert (seen.last.detached.process_id, seen.last.detached.next_offset) == ("outlives", 6)
    assert worker.sh("echo [$x] $PWD").text == "[] /usr\n"
    assert worker.shell().generation == 2
    assert worker.listed()["outlives"].running
    again = worker.sh(script, command_id="outlives", **fields)
    assert again.last.detached == seen.last.detached
    worker.bash("echo word > go")
    rest = worker.attach("outlives", 6)
    assert (rest.text, rest.exited.code) == ("word\n", 3)
    assert worker.sh("echo still here").text == "still here\n"
    worker.processes.Release(exec_pb2.ReleaseRequest(process_id="outlives"))


def test_a_detached_command_is_signalled_as_a_process(worker: Worker, tools: Tools) -> None:
    worker.bash("true", process_id="taken")
    seen = worker.sh(
        "echo begun; sleep 4745",
        command_id="taken",
        timeout=1,
        on_timeout=exec_pb2.ON_TIMEOUT_DETACH,
    )
    process_id = seen.last.detached.process_id
    assert process_id.startswith("taken-")
    worker.signal(process_id, 15, scope=exec_pb2.SignalRequest.SCOPE_TREE)
    assert worker.attach(process_id).exited.reason == SIGNALLED
    assert tools.bash("pgrep -fx 'sleep 4745' | wc -l") == "0"


def test_reset_ends_what_runs_and_starts_afresh(worker: Worker, tools: Tools) -> None:
    worker.sh("cd /usr; x=1; sleep 4746 &")
    stream = worker.run(worker.shell_id, "echo up; sleep 4746")
    assert stream.output() == b"up\n"
    request = exec_pb2.ResetShellRequest(shell_id=worker.shell_id)
    shell = worker.shells.Reset(request, timeout=30)
    assert (shell.state, shell.generation) == (READY, 3)
    assert Seen(list(stream)).exited.reason == CANCELLED
    assert worker.sh("echo [$x]; basename $PWD").text == "[]\nworkspace\n"
    assert tools.bash("pgrep -fx 'sleep 4746' | wc -l") == "0"


def test_closing_a_shell_ends_its_processes(worker: Worker, tools: Tools) -> None:
    worker.open("closed")
    stream = worker.run("closed", "setsid sleep 4747 & echo up; sleep 4747", "last")
    assert stream.output() == b"up\n"
    worker.shells.Close(exec_pb2.CloseShellRequest(shell_id="closed"), timeout=30)
    assert Seen(list(stream)).exited.reason == CANCELLED
    assert tools.bash("pgrep -fx 'sleep 4747' | wc -l") == "0"
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        worker.shells.Close(exec_pb2.CloseShellRequest(shell_id="closed"), timeout=30)


def test_background_output_stays_out_of_later_commands(worker: Worker) -> None:
    worker.sh("rm -f go; mkfifo go; (cat go; echo LATE; touch late) &")
    seen = worker.sh("echo x > go; until test -e late; do sleep 0.01; done; echo mine")
    assert seen.text == "mine\n"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"command_id": ""}, "command_id"),
        ({"command_id": "x" * 129}, "command_id"),
        ({"output": exec_pb2.OutputPolicy(separate_stderr=True)}, "output.separate_stderr"),
        ({"on_timeout": 9}, "on_timeout"),
    ],
)
def test_wrong_input_names_its_field(worker: Worker, fields: dict[str, Any], field: str) -> None:
    given = {"shell_id": worker.shell_id, "command_id": "wrong", "script": "true", **fields}
    with refused(grpc.StatusCode.INVALID_ARGUMENT, field, "google.rpc.BadRequest"):
        read(worker.shells.Run(exec_pb2.RunRequest(**given), timeout=10))
