"""An exec server whose ripgrep is another program."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloister_api.exec.v1 import exec_pb2
from support.sandbox_server import Sandbox, sandbox


@contextmanager
def with_ripgrep(folder: Path, script: str) -> Iterator[Sandbox]:
    """A server that a session has claimed; `script`, for sh, runs in place of each search."""
    engine = folder / "rg"
    engine.write_text(f"#!/bin/sh\n{script}")
    engine.chmod(0o755)
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    with sandbox(folder / "server", {"env": env}) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        yield server
