"""The `cloister` command.

Exit codes: 0 is success, 1 a failure (one sentence on stderr), 2 a wrong command line; `exec`
and `shell` end with the code of the command they ran, or with 1 where the sandbox says one that no
command can end with.
"""

import os
import sys
from collections.abc import Sequence

from .._errors import CloisterError
from .._sync_client import Client
from . import output
from .arguments import parse

INTERRUPTED = 130
# The system keeps eight bits: of 256 it would make a success.
_CODES = range(256)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; argv: its arguments, None is the process's own. Returns the exit code."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        with Client(
            namespace=arguments.namespace,
            kubeconfig=arguments.kubeconfig,
            context=arguments.context,
            system_namespace=arguments.system_namespace,
        ) as client:
            code: int = arguments.run(client, arguments)
        sys.stdout.flush()
    except CloisterError as error:
        output.problem(error)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has had enough. What is left would fail again when it is flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if code in _CODES else 1
