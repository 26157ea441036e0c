"""Behaviours 49 to 69: bash."""

import subprocess
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2
from support.reference_toolset import Answer, Both, part
from support.sandbox_server import refused

REOPENED = (
    "[the shell ended and a new one was opened in {w}; "
    "variables, functions and background jobs are gone]"
)


def sleeping(seconds: str) -> list[str]:
    """The pids of what sleeps for so long."""
    found = subprocess.run(
        ["pgrep", "-fx", f"sleep {seconds}"], check=False, capture_output=True, text=True
    )
    return found.stdout.split()


@pytest.fixture
def seconds() -> str:
    """A duration that no other test sleeps for."""
    return f"{5_000_000 + uuid.uuid4().int % 1_000_000}"


def test_row_49_a_plain_shell_without_a_terminal(both: Both) -> None:
    both.says("{w}", "bash", command="pwd")
    both.says("not a tty", "bash", command="tty || true")
    both.says("a\nb", "bash", command="echo a; echo b >&2")
    for what in (
        "$-",
        "$0",
        "$#",
        "$(shopt login_shell | cut -f2)",
        "$(shopt -q -o history; echo $?)",
    ):
        both.same("bash", command=f"echo {what}" if what != "$0" else "echo ${0##*/}")


def test_row_50_state_stays_between_calls(both: Both) -> None:
    both.make(lambda root: (root / "sub").mkdir())
    both.says(
        "(no output)",
        "bash",
        command="cd sub; x=1; export y=2; f() { echo f$x$y; }; shopt -s expand_aliases extglob\n"
        "alias hello='echo hi'\nsleep 30 &",
    )
    both.says("{w}/sub", "bash", command="pwd")
    both.says("f12\nhi", "bash", command="f\nhello")
    both.says("1", "bash", command="jobs | wc -l")
    both.says("on", "bash", command="shopt extglob | cut -f2")


def test_row_51_the_environment_is_given_and_nothing_else(both: Both) -> None:
    command = r"env | grep -v '^_=' | cut -d= -f1 | sort"
    theirs = set(both.theirs("bash", command=command).text.split())
    ours = set(both.ours("bash", command=command).text.split())
    # Theirs was given three variables; ours has a few more that programs look for, and none of the
    # server's.
    assert theirs == {"HOME", "LANG", "PATH", "PWD", "SHLVL", "TERM"}
    added = {"CLOISTER_CONTEXT", "LC_CTYPE", "LOGNAME", "SHELL", "TMPDIR", "USER"}
    assert ours - theirs == added
    assert theirs - ours == {"LANG"}  # LC_CTYPE says as much
    both.says("[] [] dumb", "bash", command='echo "[$PS1] [$PS2] $TERM"')


def test_row_52_standard_input_is_empty(both: Both) -> None:
    both.says("eof", "bash", command="cat; read x || echo eof")
    assert "EOFError" in both.ours("bash", command="python3 -c 'input()'").text
    both.says("after", "bash", command="bash\necho after")


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (r"printf '  x\n\n\n'", "  x"),
        (r"printf '\n\n y \n z'", "\n\n y \n z"),
        (":", "(no output)"),
        (r"printf '\n\n'", "(no output)"),
        ("echo out; echo err >&2; echo out", "out\nerr\nout"),
        ("# only a comment\necho x", "x"),
        ("cat <<'END'\na $b\nEND", "a $b"),
        ("echo a;\n\n\techo b   \n", "a\nb"),
        ("{ echo a; }; (echo b)", "a\nb"),
        ("echo 'ä ß 𝄞'", "ä ß 𝄞"),
    ],
)
def test_row_53_what_a_command_printed(both: Both, command: str, text: str) -> None:
    both.says(text, "bash", command=command)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("false", 1),
        ("grep x /dev/null", 1),
        ("no-such-command 2>/dev/null", 127),
        ("sh -c 'kill -KILL $$'", 137),
        ("sh -c 'kill -SEGV $$'", 139),
        ("(exit 42)", 42),
        ("true | (exit 3)", 3),
    ],
)
def test_row_54_an_exit_code_is_shown(both: Both, command: str, code: int) -> None:
    theirs = both.theirs("bash", command=f"{{ {command}; }} 2>/dev/null")
    assert theirs == Answer("(no output)", True)
    result = both.result("bash", command=f"{{ {command}; }} 2>/dev/null")
    assert (result.content[0].text, result.is_error) == (f"[exit code {code}]", True)
    assert result.exit.code == code


def test_row_55_restart(both: Both) -> None:
    both.make(lambda root: (root / "sub").mkdir())
    both.says("(no output)", "bash", command="cd sub; x=1")
    both.says("bash session restarted", "bash", restart=True, command="touch never")
    both.says("{w} []", "bash", command='echo "$PWD [$x]"')
    both.fails("bash: command is required", "bash", command="")
    both.fails("bash: command is required", "bash")
    both.fails("bash: command is required", "bash", restart=False)
    assert not (both.root / "never").exists()


def test_row_56_a_timeout_may_be_given(both: Both) -> None:
    both.says("x", "bash", command="echo x", timeout_ms=0)
    both.says("x", "bash", command="echo x", timeout_ms=60_000)
    late = "bash: bash command timed out after 0.25s"
    assert both.theirs("bash", command="sleep 60", timeout_ms=250) == Answer(late, True)
    assert both.ours("bash", command="sleep 60", timeout_ms=250).text.startswith(late)
    both.theirs("bash", restart=True)
    theirs = both.theirs("bash", command="echo x", timeout_ms=-5)
    assert theirs == Answer("bash: bash command timed out after -0.005s", True)
    ours = both.ours("bash", command="echo x", timeout_ms=-5)
    assert ours == Answer("bash: argument timeout_ms must not be negative", True)
    assert both.ours("bash", command="echo alive") == Answer("alive", False)


def test_row_57_a_timeout_keeps_what_was_printed(both: Both) -> None:
    command = "echo before; sleep 60"
    theirs = both.theirs("bash", command=command, timeout_ms=300)
    assert theirs == Answer("bash: bash command timed out after 0.3s", True)
    lost = Answer("bash: bash session terminated; restart required", True)
    assert both.theirs("bash", command="echo next") == lost
    assert both.ours("bash", command="cd /usr; kept=yes") == Answer("(no output)", False)
    ours = both.ours("bash", command=command, timeout_ms=300)
    assert ours == Answer("before\nbash: bash command timed out after 0.3s", True)
    assert both.ours("bash", command="echo $kept $PWD") == Answer("yes /usr", False)


def test_row_57_a_shell_that_hears_nothing_is_replaced(both: Both) -> None:
    command = "cd /usr; trap '' INT TERM; echo before; while :; do :; done"
    ours = both.ours("bash", command=command, timeout_ms=300)
    said = f"before\nbash: bash command timed out after 0.3s\n{REOPENED}"
    assert ours == Answer(said, True)
    assert both.ours("bash", command="echo next") == Answer("next", False)


def test_row_58_what_timed_out_is_gone(both: Both, seconds: str) -> None:
    command = f"sleep {seconds} & nohup sleep {seconds} & setsid sleep {seconds} & sleep {seconds}"
    both.theirs("bash", command=command, timeout_ms=500)
    assert len(sleeping(seconds)) == 4
    subprocess.run(["kill", *sleeping(seconds)], check=True)
    both.ours("bash", command=command, timeout_ms=500)
    assert sleeping(seconds) == []


def test_row_59_no_output_is_taken_for_a_status(both: Both) -> None:
    for length in (*range(4040, 4050), *range(8136, 8146), 65_535, 65_536, 65_537):
        command = f"head -c {length} /dev/zero | tr '\\0' x; (exit 137)"
        result = both.result("bash", command=command)
        assert result.content[0].text == "x" * length + "\n[exit code 137]"
    forged = "for fd in 50 51 200 3 4; do printf 'deadbeef 0 /\\0' >&$fd; done 2>/dev/null; false"
    assert both.result("bash", command=forged).exit.code == 1
    marker = "printf '\\n__ANT_CMD_0123_DONE__0\\n'; false"
    assert both.ours("bash", command=marker).is_error


@pytest.mark.parametrize(
    "command", ["echo )", "if true; then echo x", "} ; {", "# only a comment", "for"]
)
def test_row_60_a_syntax_error_spoils_one_command(both: Both, command: str) -> None:
    assert both.ours("bash", command="kept=yes") == Answer("(no output)", False)
    result = both.result("bash", command=command)
    assert result.is_error == (command != "# only a comment")
    assert not result.state_lost
    assert both.ours("bash", command="echo $kept") == Answer("yes", False)
    both.theirs("bash", command=command, timeout_ms=1500)
    assert both.theirs("bash", command="echo next").is_error


@pytest.mark.parametrize(
    "command",
    [
        "echo 'unterminated",
        'echo "unterminated',
        "cat <<END\nno end",
        "echo ${x",
        "echo $(",
        "echo \\",
        "x=$((1/0))",
        "readonly r=1; r=2",
        "a=(1); echo ${a[1/0]}",
    ],
)
def test_row_61_an_unfinished_line_ends_at_once(both: Both, command: str) -> None:
    assert both.ours("bash", command="kept=yes") == Answer("(no output)", False)
    result = both.result("bash", command=command)
    assert result.exit.reason == exec_pb2.ExitInfo.REASON_EXITED
    assert not result.state_lost
    assert both.ours("bash", command="echo $kept") == Answer("yes", False)


@pytest.mark.parametrize(
    "command", ["echo 'unterminated", "cat <<END\nno end", "x=$((1/0))", "readonly r=1; r=2"]
)
def test_row_61_the_reference_waits_for_its_timeout(both: Both, command: str) -> None:
    theirs = both.theirs("bash", command=command, timeout_ms=300)
    assert theirs == Answer("bash: bash command timed out after 0.3s", True)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 7", 7),
        ("set -e; false", 1),
        ("unset x; : ${x:?no x}", 1),
        ("set -u; echo $unset", 1),
        ("exec sh -c 'exit 5'", 5),
    ],
)
def test_row_62_a_shell_that_ends_is_replaced(both: Both, command: str, code: int) -> None:
    result = both.result("bash", command=f"echo words; {command}")
    assert result.state_lost
    assert (result.exit.code, result.is_error) == (code, True)
    assert result.content[0].text.startswith("words\n")
    assert result.content[0].text.endswith(REOPENED.replace("{w}", str(both.root)))
    assert both.ours("bash", command="echo next") == Answer("next", False)


@pytest.mark.parametrize(
    "command",
    ["exec >/dev/null", "exec 2>&-", "printf() { return 9; }", "set -x"],
)
def test_row_62_nothing_breaks_the_framing(both: Both, command: str) -> None:
    first = both.result("bash", command=command)
    assert (first.exit.code, first.state_lost) == (0, False)
    both.result("bash", command="set +x")
    assert both.bash("command echo next") == "next"
    stopped = both.result("bash", command="echo words; kill -STOP $$", timeout_ms=300)
    assert stopped.content[0].text.startswith("words\nbash: bash command timed out after 0.3s")
    assert both.bash("echo alive") == "alive"


def test_row_63_the_end_of_long_output_is_kept(both: Both) -> None:
    command = "for i in $(seq 60000); do echo line $i; done"
    theirs, result = both.theirs("bash", command=command), both.result("bash", command=command)
    text = result.content[0].text
    text, left_out = text.rsplit("\n", 1)
    for each in (theirs.text, text):
        assert each.startswith("[output truncated]\n")
        assert each.endswith("\nline 60000")
    # The reference counts its own marker as output.
    assert text.removeprefix("[output truncated]\n").endswith(theirs.text.split("\n", 2)[2])
    total = sum(len(f"line {number}\n") for number in range(1, 60_001))
    assert result.truncation.total_bytes == total
    assert result.truncation.omitted_bytes == total - part("agent_toolset").BASH_OUTPUT_LIMIT
    path = result.truncation.spool_path
    assert left_out == (
        f"[the output has {total} bytes; shown are the last 102400; all of it is in {path}]"
    )
    first = both.ours("read", file_path=path, view_range=[1, 2])
    assert first == Answer("line 1\nline 2", False)
    wide = both.result("bash", command="printf 'ä%.0s' $(seq 60000); printf x")
    assert "\ufffd" not in wide.content[0].text


@pytest.mark.parametrize(
    "printed", [r"\x1b[31mred\x1b[0m \x1b[2Kx", r"a\0b", r"\xff\xfe", r"caf\xc3", r"a\r\nb\r\n"]
)
def test_row_64_escapes_go_and_bytes_stay(both: Both, printed: str) -> None:
    both.same("bash", command=f"printf '{printed}'")


def test_row_64_titles_and_progress_go_too(both: Both) -> None:
    bar = r"printf 'a\n10%%\r50%%\r100%%\ndone\r\n'"
    assert both.theirs("bash", command=bar) == Answer("a\n10%\r50%\r100%\ndone\r", False)
    assert both.ours("bash", command=bar) == Answer("a\n100%\ndone\r", False)
    title = r"printf '\x1b]0;a title\x07text \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\'"
    assert "a title" in both.theirs("bash", command=title).text
    assert both.ours("bash", command=title) == Answer("text link", False)


def test_row_65_background_output_stays_out_of_later_results(both: Both) -> None:
    late = "(sleep 0.2; echo LATE; touch late) & :"
    wait = "while ! test -e late; do sleep 0.02; done; echo NEXT"
    both.theirs("bash", command=late)
    both.ours("bash", command=late)
    assert both.theirs("bash", command=wait) == Answer("LATE\nNEXT", False)
    assert both.ours("bash", command=wait) == Answer("NEXT", False)
    # A chatty one does not block between calls, when nobody reads what it prints.
    both.bash("(head -c 3000000 /dev/zero; touch chatty) &")
    while not (both.root / "chatty").exists():
        both.ours("read", file_path="chatty")
    assert both.bash("echo next") == "next"


def test_row_66_calls_at_once_do_not_mix(both: Both) -> None:
    def one(number: int) -> str:
        return both.ours("bash", command=f"for i in $(seq 50); do echo {number}; done").text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(one, range(24)))
    assert texts == ["\n".join([str(number)] * 50) for number in range(24)]


def test_row_67_a_command_may_be_large(both: Both) -> None:
    large = "x" * 2_000_000
    assert both.bash(f"cat > large <<'END'\n{large}\nEND\nwc -c < large") == "2000001"
    assert both.bash("strace -V >/dev/null 2>&1; echo " + "y" * 100_000) == "y" * 100_000


def test_row_68_a_daemon_does_not_hold_the_call(both: Both, seconds: str) -> None:
    both.says("started", "bash", command=f"setsid -f sleep {seconds}; echo started")
    both.says("started", "bash", command=f"setsid sleep {seconds} & echo started")
    count = f"until test $(pgrep -fxc 'sleep {seconds}') = 4; do sleep 0.02; done; echo all"
    assert both.bash(count) == "all"


def test_row_69_close_ends_everything(both: Both, seconds: str) -> None:
    context = uuid.uuid4().hex
    ended = both.tools.call("bash", context_id=context, command=f"sleep {seconds} & x=1")
    assert not ended.is_error
    closing = exec_pb2.CloseContextRequest(context_id=context)
    both.tools.stub.CloseContext(closing, timeout=20)
    assert sleeping(seconds) == []
    with refused(grpc.StatusCode.NOT_FOUND, reason="UNKNOWN_ID"):
        both.tools.stub.CloseContext(closing, timeout=20)
    # A later call is a new context.
    again = both.tools.call("bash", context_id=context, command="echo [$x]")
    assert again.content[0].text == "[]"
    both.tools.stub.CloseContext(closing, timeout=20)


@pytest.mark.long
def test_row_69_the_reference_leaves_jobs_and_a_dead_shell(both: Both, seconds: str) -> None:
    both.theirs("bash", command=f"sleep {seconds} & x=1")
    both.reference.end()
    assert len(sleeping(seconds)) == 1
    dead = "bash: bash session terminated; restart required"
    assert both.theirs("bash", command="echo [$x]") == Answer(dead, True)
