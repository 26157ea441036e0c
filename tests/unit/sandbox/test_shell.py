"""The persistent shell: whatever a command does, its result is its own and the next one works."""

import os
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.capture import Output
from cloister_sandbox.hands import Hands
from cloister_sandbox.shell_files import make_output
from support.sandbox_server import Tools


def test_state_persists_between_commands(tools: Tools) -> None:
    tools.bash("cd /tmp; x=1; export y=2; f() { echo f$x$y; }")
    assert tools.bash("pwd; f") == "/tmp\nf12"
    tools.bash("cd -")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("echo )", 2),
        ("echo 'unterminated", 2),
        ("if true; then echo x", 2),
        ("# only a comment", 0),
        ("cat <<END\nno end", 0),
        ("x=$((1/0))", 1),
        ("readonly r=1; r=2", 1),
        ("exec >/dev/null", 0),
        ("printf() { return 9; }", 0),
        ("ulimit -S -n 64", 0),
        ("set -x; true; set +x", 0),
        ("return 3", 3),
        ("false", 1),
        ("no-such-command", 127),
        ("kill -SEGV $BASHPID | true", 0),
    ],
)
def test_a_command_cannot_spoil_the_next(tools: Tools, command: str, code: int) -> None:
    result = tools.call("bash", command=command)
    assert result.exit.code == code
    assert result.is_error == (code != 0)
    assert not result.state_lost
    assert tools.bash("builtin echo next") == "next"
    tools.bash("unset -f printf")


@pytest.mark.parametrize(
    ("command", "code"), [("exit 7", 7), ("set -e; false", 1), ("exec true", 0)]
)
def test_a_shell_that_ends_is_replaced_and_says_so(tools: Tools, command: str, code: int) -> None:
    result = tools.call("bash", command=f"cd /usr; echo last words; {command}")
    assert result.exit.code == code
    assert result.state_lost
    assert result.content[0].text.startswith("last words\n")
    assert "a new one was opened" in result.content[0].text
    assert tools.bash("echo alive") == "alive"
    tools.call("bash", restart=True)


def test_restart(tools: Tools, claimed: object) -> None:
    tools.bash("cd /; z=1")
    assert tools.text("bash", restart=True) == "bash session restarted"
    assert tools.bash("echo [$z]; basename $PWD") == "[]\nworkspace"


def test_timeout_keeps_output_and_ends_every_process(tools: Tools) -> None:
    command = (
        "echo before; (sleep 4711 &); setsid sleep 4711 & nohup sleep 4711 & disown; sleep 4711"
    )
    tools.bash("kept=yes")
    result = tools.call("bash", command=command, timeout_ms=1500)
    assert result.is_error
    assert result.content[0].text == "before\nbash: bash command timed out after 1.5s"
    assert result.exit.reason == exec_pb2.ExitInfo.REASON_TIMED_OUT
    assert not result.state_lost
    assert tools.bash("pgrep -fx 'sleep 4711' | wc -l; echo $kept") == "0\nyes"


def test_an_interrupted_shell_leaves_no_zombie(tools: Tools) -> None:
    tools.call("bash", command="sleep 4718", timeout_ms=100)
    result = tools.call("bash", command="echo $$ >shell; sleep 4719 & wait", timeout_ms=1000)
    assert not result.state_lost
    shell = tools.call("bash", context_id="other", command="cat shell").content[0].text
    count = f'until [ -z "$(ps --no-headers --ppid {shell})" ]; do sleep 0.02; done; echo none'
    assert tools.call("bash", context_id="other", command=count).content[0].text == "none"


def test_what_ignores_an_interrupt_is_terminated_and_the_shell_stays(tools: Tools) -> None:
    tools.bash("kept=yes")
    command = "bash -c 'trap \"\" INT; echo up; sleep 4713'; echo on"
    result = tools.call("bash", command=command, timeout_ms=1000)
    assert result.content[0].text.startswith("up\n")
    assert not result.state_lost
    assert tools.bash("pgrep -fx 'sleep 4713' | wc -l; echo $kept") == "0\nyes"


def test_a_shell_that_cannot_be_interrupted_is_replaced(tools: Tools) -> None:
    command = "trap '' INT TERM; echo up; while :; do sleep 4714; done"
    result = tools.call("bash", command=command, timeout_ms=1000)
    assert result.content[0].text.startswith("up\nbash: bash command timed out after 1.0s\n[the")
    assert result.state_lost
    assert tools.bash("pgrep -fx 'sleep 4714' | wc -l") == "0"


def test_background_output_stays_out_of_later_results(tools: Tools) -> None:
    tools.bash("(sleep 0.1; echo LATE; touch late-done) &")
    assert tools.bash("while ! test -e late-done; do sleep 0.02; done; echo NEXT") == "NEXT"


def test_a_chatty_background_job_never_blocks(tools: Tools) -> None:
    tools.bash("(head -c 1000000 /dev/zero; touch chatty-done) &")
    assert tools.bash("while ! test -e chatty-done; do sleep 0.02; done; echo ok") == "ok"


def test_only_the_tail_of_long_output_is_kept(tools: Tools) -> None:
    result = tools.call("bash", command="head -c 300000 /dev/zero | tr '\\0' a; echo END")
    text = result.content[0].text
    assert text.startswith("[output truncated]\na")
    assert (
        "aEND\n[the output has 300004 bytes; shown are the last 102400; all of it is in /" in text
    )
    assert result.truncation.total_bytes == 300004
    assert result.truncation.omitted_bytes == 300004 - 102_400


def test_stdin_is_empty(tools: Tools) -> None:
    assert tools.bash("cat; read x || echo eof") == "eof"


def test_the_environment_is_an_allow_list(tools: Tools) -> None:
    names = tools.bash("env | cut -d= -f1 | sort").split()
    added_by_bash = {"_", "SHLVL", "PWD", "OLDPWD"}
    assert set(names) - added_by_bash == {
        *("CLOISTER_CONTEXT", "HOME", "LC_CTYPE", "LOGNAME", "PATH", "SHELL"),
        *("TERM", "TMPDIR", "USER"),
    }


def test_a_stopped_shell_runs_into_its_timeout(tools: Tools) -> None:
    tools.bash("kept=yes")
    result = tools.call("bash", command="kill -STOP $$", timeout_ms=300)
    assert result.is_error
    assert not result.state_lost
    assert tools.bash("echo alive $kept") == "alive yes"


def test_a_shell_that_ended_between_commands_is_not_passed_over(tools: Tools) -> None:
    end = "cd /usr; kept=yes; (trap '' TERM; rm -f ended; sleep 0.2; kill -KILL $$) & :"
    tools.bash(end)
    gone = "while kill -0 $1; do sleep 0.02; done"
    pid = tools.bash("echo $$")
    assert tools.call("bash", context_id="other", command=f"set -- {pid}; {gone}").exit.code == 0
    result = tools.call("bash", command="echo [$kept] $PWD")
    assert result.state_lost
    assert result.content[0].text.startswith("[] /usr\n[the shell had ended since")
    tools.call("bash", restart=True)


def test_a_command_that_replaces_the_shell_runs_into_its_timeout(tools: Tools) -> None:
    result = tools.call("bash", command="echo before; exec sleep 4712", timeout_ms=1000)
    assert result.is_error
    assert result.content[0].text.startswith("before\nbash: bash command timed out after 1.0s")
    assert result.state_lost
    assert tools.bash("pgrep -fx 'sleep 4712' | wc -l") == "0"


def test_a_command_is_required(tools: Tools) -> None:
    result = tools.call("bash", command="")
    assert (result.is_error, result.content[0].text) == (True, "bash: command is required")


def test_a_fifo_in_place_of_the_command_file_stops_nothing(tools: Tools) -> None:
    tools.bash("cd ${BASH_SOURCE[0]%/*}; rm command; mkfifo command")
    assert "a new shell was opened" in tools.text("bash", command="echo lost")
    assert tools.bash("echo next") == "next"


def test_the_server_follows_no_link_that_is_put_in_place_of_the_output(tmp_path: Path) -> None:
    path, secret = tmp_path / "out", tmp_path / "secret"
    secret.write_text("what only the server may read")

    def swapped(name: str, mode: int, *, dir_fd: int) -> None:
        Path(name).symlink_to(secret)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkfifo", swapped)
        with pytest.raises(OSError, match="symbolic links"):
            make_output(str(path), -1)


def test_a_regular_file_in_place_of_the_output_is_refused(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "mkfifo", lambda name, *_, **__: Path(name).touch())
        with pytest.raises(FileExistsError):
            Output(make_output(str(tmp_path / "out"), -1), Hands("hands"))


async def test_what_a_job_prints_without_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read finds something new, as from a job that is quicker than the server."""
    output = Output(make_output(str(tmp_path / "out"), -1), Hands("hands"))
    writer = os.open(tmp_path / "out", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"said in time")
    read = os.read

    def refilled(fd: int, size: int) -> bytes:
        data = read(fd, size)
        os.write(writer, b"later")
        return data

    monkeypatch.setattr(os, "read", refilled)
    assert (await output.finish()).text().startswith("said in time")
    monkeypatch.undo()
    output.close()
    os.close(writer)


@pytest.mark.parametrize(
    "forged",
    [r"garbage\0", r"00000000 0 /\0", r"00000000 9999999999 /\0", r"\xff\xfe\0", "%020000d"],
)
def test_a_forged_status_ends_the_shell_and_nothing_else(tools: Tools, forged: str) -> None:
    """A tool finds the way its shell tells the status among the shell's descriptors."""
    find = "for fd in {0..63}; do test -S /proc/$$/fd/$fd && "
    result = tools.call(
        "bash", command=f"{find} printf '{forged}' >&$fd; done; sleep 0.3", context_id="forger"
    )
    assert result.state_lost
    assert tools.bash("echo next", context_id="forger") == "next"
