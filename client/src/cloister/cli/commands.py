"""What each command does. Every function gets the client and the parsed command line."""

import argparse
import contextlib
import secrets
import shlex
import sys

from .._errors import CloisterError
from .._models import ToolResult
from .._sync import Client, Session
from . import output

_NO_OUTPUT = "(no output)"


def list_environments(client: Client, arguments: argparse.Namespace) -> int:
    """cloister env list"""
    output.environments(client.list_environments(), arguments.output, client.namespace)
    return 0


def create_session(client: Client, arguments: argparse.Namespace) -> int:
    """cloister session create"""
    session = client.create_session(
        arguments.environment,
        name=arguments.name,
        env=dict(arguments.env),
        idle_timeout=arguments.idle_timeout,
        max_lifetime=arguments.max_lifetime,
        wait=arguments.wait,
    )
    output.session(session.info, arguments.output)
    session.close(delete=False)
    return 0


def list_sessions(client: Client, arguments: argparse.Namespace) -> int:
    """cloister session list"""
    found = client.list_sessions(arguments.environment)
    output.sessions(found, arguments.output, client.namespace)
    return 0


def remove_session(client: Client, arguments: argparse.Namespace) -> int:
    """cloister session rm: the others are ended even when one fails."""
    code = 0
    for name in arguments.names:
        try:
            client.delete_session(name)
        except CloisterError as error:
            print(f"cloister: {error}", file=sys.stderr)
            code = 1
    return code


def execute(client: Client, arguments: argparse.Namespace) -> int:
    """cloister exec"""
    words = arguments.command
    command = words[0] if len(words) == 1 else shlex.join(words)
    timeout_ms = None if arguments.timeout is None else arguments.timeout * 1000
    session = client.get_session(arguments.name)
    if arguments.shell:
        result = session.bash(command, timeout_ms=timeout_ms, context=arguments.shell)
    else:
        result = _in_fresh_shell(session, command, timeout_ms)
    text = _printed(result)
    if text:
        print(text)
    if result.timed_out:
        print("cloister: the command's time was used up and it was stopped", file=sys.stderr)
    if result.truncated:
        print(
            f"cloister: {result.omitted_bytes} of {result.total_bytes} bytes of output left out",
            file=sys.stderr,
        )
    if result.exit_code is not None:
        return result.exit_code or (1 if result.is_error else 0)
    return 1 if result.is_error else 0


def logs(client: Client, arguments: argparse.Namespace) -> int:
    """cloister logs"""
    for chunk in client.logs(arguments.name, follow=arguments.follow, tail=arguments.tail):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    return 0


def _in_fresh_shell(session: Session, command: str, timeout_ms: int | None) -> ToolResult:
    """Run it where it neither waits for the agent's commands nor changes their shell."""
    context = f"exec-{secrets.token_hex(6)}"
    try:
        return session.bash(command, timeout_ms=timeout_ms, context=context)
    finally:
        with contextlib.suppress(CloisterError):
            session.close_context(context)


def _printed(result: ToolResult) -> str:
    """What the command printed, without the notes that the tool adds for models."""
    text = result.text
    if text == _NO_OUTPUT:
        return ""
    if result.exit_code:
        before, note, _ = text.rpartition(f"[exit code {result.exit_code}]")
        if note and (not before or before.endswith("\n")):
            return before.removesuffix("\n")
    return text
