"""The command line: commands, options and their help."""

import argparse
import re
from collections.abc import Callable, Sequence

from . import commands, copying, running, terminal

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_DURATION = re.compile(r"(\d+)(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_MAX_WAIT = 3600


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; ends the process with code 2 when it is wrong."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloister",
        description="Sandboxes for AI agents on your Kubernetes cluster.",
        epilog="Try `cloister session create data-analysis --name mine`, then "
        "`cloister exec mine -- 'python3 --version; ls'`.",
    )
    _add_common(parser)
    top = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    env = top.add_parser("env", help="list Environments")
    env_commands = env.add_subparsers(metavar="COMMAND", required=True)
    _command(env_commands, "list", commands.list_environments, "list Environments and their pools")
    session = top.add_parser("session", help="create, list, suspend and end sessions")
    session_commands = session.add_subparsers(metavar="COMMAND", required=True)
    _add_session_commands(session_commands)
    _add_exec(top)
    _add_shell(top)
    listing = _command(top, "ps", running.list_programs, "list what runs in a session")
    listing.add_argument("name", metavar="NAME", help="the session")
    _add_cp(top)
    logs = _command(top, "logs", commands.logs, "show what a session's exec server has logged")
    logs.add_argument("name", metavar="NAME", help="the session")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the session ends")
    logs.add_argument("--tail", type=_count, metavar="N", help="only the last N lines")
    return parser


def _add_common(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Options that are taken before a command and, without a default that undoes it, after it."""
    parser.add_argument(
        "-n",
        "--namespace",
        default=default,
        help="namespace of the sandboxes "
        "(default: $CLOISTER_SANDBOX_NAMESPACE, or cloister-sandboxes)",
    )
    parser.add_argument(
        "-o",
        "--output",
        choices=["table", "json"],
        default=default or "table",
        help="how lists and sessions are shown (default: table)",
    )
    parser.add_argument("--context", default=default, help="name of a context in the kubeconfig")
    parser.add_argument(
        "--kubeconfig",
        default=default,
        help="path of a kubeconfig (default: as kubectl finds it)",
    )
    parser.add_argument(
        "--system-namespace",
        default=default,
        help="namespace where Cloister is installed "
        "(default: $CLOISTER_SYSTEM_NAMESPACE, or cloister-system)",
    )


_Subparsers = argparse._SubParsersAction  # noqa: SLF001 - argparse gives its type no other name


def _command(
    where: "_Subparsers[argparse.ArgumentParser]",
    name: str,
    run: Callable[..., int],
    summary: str,
    epilog: str = "",
) -> argparse.ArgumentParser:
    parser = where.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=epilog
    )
    parser.set_defaults(run=run)
    _add_common(parser, default=argparse.SUPPRESS)
    return parser


def _add_session_commands(where: "_Subparsers[argparse.ArgumentParser]") -> None:
    create = _command(
        where, "create", commands.create_session, "claim a sandbox; prints the session's name"
    )
    create.add_argument("environment", metavar="ENV", help="the Environment")
    create.add_argument("--name", help="name of the session (default: chosen for you)")
    create.add_argument(
        "--env",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME=VALUE",
        help="a variable for the session's commands; may be repeated",
    )
    create.add_argument(
        "--idle-timeout", type=_duration, metavar="TIME", help="end it when idle so long, as 10m"
    )
    create.add_argument(
        "--max-lifetime", type=_duration, metavar="TIME", help="end it after so long, as 2h"
    )
    _add_wait(create)
    listing = _command(where, "list", commands.list_sessions, "list sessions")
    listing.add_argument("environment", nargs="?", metavar="ENV", help="only this Environment's")
    egress = _command(
        where, "egress", commands.session_egress, "show what a session tried to reach"
    )
    egress.add_argument("name", metavar="NAME", help="the session")
    suspend = _command(
        where, "suspend", commands.suspend_session, "end a session's sandbox and keep its workspace"
    )
    suspend.add_argument("name", metavar="NAME", help="the session")
    resume = _command(
        where, "resume", commands.resume_session, "give a suspended session a sandbox again"
    )
    resume.add_argument("name", metavar="NAME", help="the session")
    _add_wait(resume)
    remove = _command(where, "rm", commands.remove_session, "end sessions and delete their files")
    remove.add_argument("names", nargs="+", metavar="NAME", help="the sessions")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=_wait,
        default=60,
        metavar="TIME",
        help="how long to wait for a sandbox when none is warm (default: 60s)",
    )


def _add_exec(where: "_Subparsers[argparse.ArgumentParser]") -> None:
    run = _command(
        where,
        "exec",
        running.execute,
        "run a command in a session and end with its exit code",
        "A single argument is a shell command line ('ls | wc -l'); several are one command and "
        "its arguments, passed on exactly. Output comes while it is printed, errors on stderr; "
        "standard input is passed on unless it is a terminal. An interrupt stops the command; what "
        "it leaves in the background goes on.",
    )
    run.add_argument(
        "--no-stdin", action="store_true", help="leave this command's standard input alone"
    )
    run.add_argument("name", metavar="NAME", help="the session")
    run.add_argument(
        "--shell",
        default="",
        metavar="ID",
        help="run it as an agent does, in the tools' shell of this name, which keeps its state; "
        "output and errors come together at the end (default: a program of its own)",
    )
    run.add_argument(
        "--timeout", type=_duration, metavar="TIME", help="stop the command after this, as 90s"
    )
    run.add_argument("command", nargs="+", metavar="CMD", help="the command, after --")


def _add_shell(where: "_Subparsers[argparse.ArgumentParser]") -> None:
    run = _command(
        where,
        "shell",
        terminal.shell,
        "open a terminal in a session",
        "Runs bash, or CMD as exec takes it, on a terminal, and ends with its exit code. A lost "
        "connection is repaired. Ctrl-] detaches: the program goes on, and --attach comes back to "
        "it.",
    )
    run.add_argument("name", metavar="NAME", help="the session")
    run.add_argument("--attach", metavar="ID", default="", help="attach to a program that runs")
    run.add_argument(
        "--escape",
        type=_escape,
        default="^]",
        metavar="KEY",
        help="the key that detaches, as ^] or ^T, or none (default: ^])",
    )
    run.add_argument("command", nargs="*", metavar="CMD", help="what to run, after --")


def _add_cp(where: "_Subparsers[argparse.ArgumentParser]") -> None:
    copy = _command(
        where,
        "cp",
        copying.copy,
        "copy a file or a directory to or from a session",
        "One side is NAME:PATH, the other a path of this machine. A destination that is a "
        "directory gets the source under its own name. Symbolic links are not copied out. A copy "
        "that was interrupted goes on when it is repeated: of a directory, the files that have the "
        "same size, time and mode on both sides are passed over.",
    )
    copy.add_argument("-q", "--quiet", action="store_true", help="show no progress")
    copy.add_argument(
        "-a", "--all", action="store_true", help="copy also what looks the same on both sides"
    )
    copy.add_argument("source", metavar="SRC", help="NAME:PATH, or a path of this machine")
    copy.add_argument("target", metavar="DST", help="a path of this machine, or NAME:PATH")


def _variable(text: str) -> tuple[str, str]:
    if not _VARIABLE.match(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    name, _, value = text.partition("=")
    return name, value


def _duration(text: str) -> int:
    found = _DURATION.fullmatch(text)
    if not found or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 30s, 10m or 2h")
    return int(found[1]) * _SECONDS[found[2]]


def _wait(text: str) -> int:
    seconds = _duration(text)
    if seconds > _MAX_WAIT:
        raise argparse.ArgumentTypeError(f"{text!r} is longer than an hour")
    return seconds


def _escape(text: str) -> int | None:
    try:
        return terminal.escape_key(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no key such as ^], and not none") from None


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)
