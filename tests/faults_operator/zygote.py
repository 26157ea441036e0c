"""Starts programs quickly: imports them once, and forks a process for each.

python zygote.py PROGRAM [HTTP_PORT SESSIONS_PORT]; PROGRAM is `operator` or `sandbox`. Each line of
standard input is a JSON object with `env` and `log`; the answer is a line with the process's PID. A
process is what `python -m` would have made, but for the time that its imports take, and for the
operator's ports.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


def operator(ports: list[str]) -> Callable[[], int]:
    """The operator, with the HTTP and the Sessions API on these ports."""
    from cloister_operator import names

    names.HTTP_PORT, names.SESSIONS_PORT = (int(each) for each in ports)  # type: ignore[misc]
    from cloister_operator.__main__ import main

    return main


def sandbox() -> Callable[[], int]:
    """The exec server, which notes each claim and each probe in files of its state directory."""
    sys.modules.update(dict.fromkeys(("ssl", "_hashlib")))  # type: ignore[arg-type]
    from cloister_sandbox.main import main
    from cloister_sandbox.services.runtime import RuntimeService

    claim, accepts = RuntimeService._claim, RuntimeService.Probe

    def noted_claim(self: Any, request: Any) -> None:
        claim(self, request)
        _note("claimed", request.session_uid)

    async def noted_probe(self: Any, request: Any, context: Any) -> Any:
        found = await accepts(self, request, context)
        _note("probed", "1")
        return found

    RuntimeService._claim = noted_claim  # type: ignore[method-assign]
    RuntimeService.Probe = noted_probe  # type: ignore[method-assign]
    return main


def _note(name: str, text: str) -> None:
    with open(f"{os.environ['FAULTS_NOTES']}/{name}", "w") as file:  # noqa: PTH123
        file.write(text)


def _become(program: Callable[[], int], env: dict[str, str], log: str) -> None:
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for wanted, given in enumerate((null, out, out)):
            os.dup2(given, wanted)
        os.environ.clear()
        os.environ.update(env)
        code = program()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    name, *ports = sys.argv[1:]
    program = operator(ports) if name == "operator" else sandbox()
    # What ends is forgotten at once.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(program, asked["env"], asked["log"])
        print(pid, flush=True)


if __name__ == "__main__":
    main()
