"""The persistent shell: whatever a command does, its result is its own and the next one works."""

import pytest

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
    result = tools.call("bash", command=command, timeout_ms=500)
    assert result.is_error
    assert result.content[0].text.startswith("before\nbash: bash command timed out after 0.5s")
    assert result.state_lost
    assert tools.bash("pgrep -fx 'sleep 4711' | wc -l") == "0"


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
    assert text.endswith("END")
    assert result.truncation.total_bytes == 300004
    assert result.truncation.omitted_bytes == 300004 - 102_400


def test_stdin_is_empty(tools: Tools) -> None:
    assert tools.bash("cat; read x || echo eof") == "eof"


def test_the_environment_is_an_allow_list(tools: Tools) -> None:
    names = tools.bash("env | cut -d= -f1 | sort").split()
    added_by_bash = {"_", "SHLVL", "PWD", "OLDPWD"}
    assert set(names) - added_by_bash == {
        *("CLOISTER_CONTEXT", "HOME", "LANG", "LOGNAME", "PATH", "TERM", "TMPDIR", "USER"),
    }


def test_a_stopped_shell_runs_into_its_timeout(tools: Tools) -> None:
    result = tools.call("bash", command="kill -STOP $$", timeout_ms=300)
    assert result.is_error
    assert result.state_lost
    assert tools.bash("echo alive") == "alive"


def test_a_command_that_replaces_the_shell_runs_into_its_timeout(tools: Tools) -> None:
    result = tools.call("bash", command="echo before; exec sleep 4712", timeout_ms=300)
    assert result.is_error
    assert result.content[0].text.startswith("before\nbash: bash command timed out after 0.3s")
    assert result.state_lost
    assert tools.bash("pgrep -fx 'sleep 4712' | wc -l") == "0"


def test_a_command_is_required(tools: Tools) -> None:
    result = tools.call("bash", command="")
    assert (result.is_error, result.content[0].text) == (True, "bash: command is required")
