"""What each command does. Every function gets the client and the parsed command line."""

import argparse
import sys

from .._errors import CloisterError
from .._sync_client import Client
from . import output


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


def session_egress(client: Client, arguments: argparse.Namespace) -> int:
    """cloister session egress"""
    output.egress(client.session_egress(arguments.name), arguments.output, arguments.name)
    return 0


def suspend_session(client: Client, arguments: argparse.Namespace) -> int:
    """cloister session suspend"""
    output.session(client.suspend_session(arguments.name), arguments.output)
    return 0


def resume_session(client: Client, arguments: argparse.Namespace) -> int:
    """cloister session resume"""
    session = client.resume_session(arguments.name, wait=arguments.wait)
    output.session(session.info, arguments.output)
    session.close(delete=False)
    return 0


def remove_session(client: Client, arguments: argparse.Namespace) -> int:
    """cloister session rm: the others are ended even when one fails."""
    code = 0
    for name in arguments.names:
        try:
            client.delete_session(name)
        except CloisterError as error:
            output.problem(error)
            code = 1
    return code


def logs(client: Client, arguments: argparse.Namespace) -> int:
    """cloister logs"""
    for chunk in client.logs(arguments.name, follow=arguments.follow, tail=arguments.tail):
        sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    return 0
