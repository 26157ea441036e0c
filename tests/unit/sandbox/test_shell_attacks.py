"""What a command may do to its shell: the next command gets an answer, and nobody else notices."""

import shlex

import pytest

from support.sandbox_server import Tools

pytestmark = pytest.mark.long

DEAF = {
    "builtin": 'builtin() { echo "$@"; }',
    "no-builtin": "enable -n builtin",
    "no-printf": "enable -n printf",
    "noexec": "set -n",
    "verbose-noexec": "set -nv",
    "skipping": "shopt -s extdebug; trap false DEBUG",
}
"""After these the shell runs nothing any more, or cannot tell how it ended."""

ENDS = {
    "aliases": "alias builtin=false printf=false {=false; shopt -s expand_aliases",
    "all-descriptors": 'for f in $(ls /proc/$$/fd); do [ $f -gt 2 ] && eval "exec $f>&-"; done',
    "few-descriptors": "ulimit -n 3",
    "unbound": "unset PWD; set -u",
    "long-directory": 'PWD=$(head -c 20000 /dev/zero | tr "\\0" a)',
    "error-trap": "trap 'exit 3' ERR EXIT; false",
    "debug-exit": "trap 'exit 0' DEBUG",
    "posix": "set -o posix; exec >/no/such/file",
}
"""These cost the shell, at once or with the next command."""

HARMLESS = {
    "functions": "printf() { :; }; source() { :; }; command() { :; }; exec() { :; }; trap() { :; }",
    "alias": "alias builtin=false; shopt -s expand_aliases",
    "debug-output": "trap '/bin/echo forged' DEBUG",
    "readonly": "readonly PWD OLDPWD IFS",
    "separator": "IFS=0123456789abcdef",
    "descriptors": 'for f in 255 63 62 50 10 11 12; do eval "exec $f</dev/null"; done',
    "files": 'for f in 255 63 62 50 10 11 12; do eval "exec $f>/dev/null"; done',
    "streams": "exec 0</dev/zero 1>/dev/null 2>/dev/null",
    "prompt": "PROMPT_COMMAND='exit 9'; PS1='$(exit 9)'; PS4='$(exit 9)'; set -x",
    "monitor": "set -o monitor -o vi",
}
"""After these the same shell goes on."""


def spoil(tools: Tools, command: str) -> None:
    """Run a command in a new shell of a context of its own, beside one that it must not touch."""
    assert tools.call("bash", context_id="beside", command="x=${x:-1}").exit.code == 0
    tools.call("bash", context_id="spoilt", restart=True)
    tools.call("bash", context_id="spoilt", command="x=kept")
    tools.call("bash", context_id="spoilt", command=command, timeout_ms=30_000)


@pytest.mark.parametrize("command", DEAF.values(), ids=DEAF.keys())
def test_a_deaf_shell_is_noticed(tools: Tools, command: str) -> None:
    tools.call("bash", context_id="spoilt", restart=True)
    result = tools.call("bash", context_id="spoilt", command=command, timeout_ms=30_000)
    assert result.state_lost
    assert "timed out" not in result.content[0].text
    again = tools.call("bash", context_id="spoilt", command="echo on; false")
    assert (again.content[0].text, again.exit.code) == ("on\n[exit code 1]", 1)


@pytest.mark.parametrize("command", ENDS.values(), ids=ENDS.keys())
def test_a_shell_that_ends_is_replaced(tools: Tools, command: str) -> None:
    spoil(tools, command)
    tools.call("bash", context_id="spoilt", command=":", timeout_ms=30_000)
    again = tools.call("bash", context_id="spoilt", command="echo on; (exit 4)")
    assert again.content[0].text.startswith("on\n")
    assert again.exit.code == 4
    assert tools.call("bash", context_id="beside", command="echo $x").content[0].text == "1"


@pytest.mark.parametrize("command", HARMLESS.values(), ids=HARMLESS.keys())
def test_the_shell_goes_on(tools: Tools, command: str) -> None:
    spoil(tools, command)
    again = tools.call("bash", context_id="spoilt", command="(exit 4)")
    assert (again.exit.code, again.state_lost) == (4, False)
    last = tools.call("bash", context_id="spoilt", command='set +x; trap - DEBUG; echo "[$x]"')
    assert last.content[0].text.endswith("[kept]")
    assert tools.call("bash", context_id="beside", command="echo $x").content[0].text == "1"


def test_nothing_can_be_told_without_the_number_of_the_command(tools: Tools) -> None:
    forge = (
        "for f in /proc/$$/fd/*; do for n in 00000000 ffffffff; do"
        " printf '%s 0 /forged\\0' $n > $f; done; done 2>/dev/null; false"
    )
    result = tools.call("bash", context_id="forger", command=forge, timeout_ms=30_000)
    assert result.is_error
    assert result.exit.cwd != "/forged"
    assert tools.call("bash", context_id="forger", command="echo on; false").exit.code == 1


@pytest.mark.parametrize("code", [256, 999])
def test_a_code_that_no_command_ends_with_costs_the_shell(tools: Tools, code: int) -> None:
    """As an exit code of whoever passes it on, 256 would be 0."""
    lie = f'builtin() {{ command builtin "$1" \'%s {code} /\\0\' "$3"; }}'
    tools.call("bash", context_id="liar", restart=True)
    result = tools.call("bash", context_id="liar", command=lie, timeout_ms=30_000)
    assert (result.is_error, result.state_lost) == (True, True)
    assert result.exit.code < 256
    assert tools.call("bash", context_id="liar", command="(exit 4)").exit.code == 4


def test_a_job_that_forges_statuses_without_end_costs_its_own_shell(tools: Tools) -> None:
    start = "(while :; do for n in {3..63}; do printf 'x\\0' >&$n; done; done) 2>/dev/null &"
    tools.call("bash", context_id="noisy", command=f"{start} sleep 0.3", timeout_ms=30_000)
    for _ in range(3):
        tools.call("bash", context_id="noisy", command="true", timeout_ms=30_000)
    result = tools.call("bash", context_id="noisy", command="echo on; (exit 6)")
    assert (result.content[0].text, result.exit.code) == ("on\n[exit code 6]", 6)


@pytest.mark.parametrize("whose", ["$$/comm", "self/comm"], ids=["the-shell", "a-program"])
def test_a_process_whose_name_is_no_text_ends_like_every_other(tools: Tools, whose: str) -> None:
    tools.call("bash", context_id="spoilt", restart=True)
    own = tools.bash("echo $$", context_id="spoilt") if "$$" in whose else "self"
    renamed = f"exec 3>/proc/{own}/comm; printf '\\377)\\n\\376 (' >&3; sleep 600 & sleep 601"
    command = renamed if "$$" in whose else f"bash -c {shlex.quote(renamed)}"
    result = tools.call("bash", context_id="spoilt", command=command, timeout_ms=700)
    assert "timed out" in result.content[0].text
    assert tools.bash("pgrep -f 'sleep 60[01]' || echo none", context_id="spoilt") == "none"
