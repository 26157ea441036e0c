"""The server's port is reached from outside the pod alone, and by the server itself.

Client and server are in two network namespaces, as a worker and a pod are.
"""

import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloister_api.exec.v1 import exec_pb2
from cloister_sandbox.outside import Outside
from support.netns import Netns, join
from support.passing_on import pass_on
from support.sandbox_server import Sandbox, Tools, free_port, sandbox

POD, WORKER = "10.9.0.1", "10.9.0.2"
_ESTABLISHED = "01"


@pytest.fixture(scope="module")
def pod() -> Iterator[tuple[Netns, Netns]]:
    """A pod's network, and what is outside."""
    with Netns() as inside, Netns() as outside:
        join(inside, "eth0", outside, "eth0")
        for space, address in ((inside, POD), (outside, WORKER)):
            space.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        yield inside, outside


def connected(address: str, port: int, source: str = "") -> socket.socket | None:
    """A connection to a port, from an address of one's own choice; None when it does not answer."""
    made = socket.socket()
    made.settimeout(0.3)
    made.bind((source, 0))
    # By no name that keeps tests on the loopback interface: these networks are the test's own.
    if made.connect_ex((address, port)) == 0:
        return made
    made.close()
    return None


def connects(address: str, port: int, source: str = "") -> bool:
    """Whether a port is reached."""
    made = connected(address, port, source)
    if made is not None:
        made.close()
    return made is not None


def listening() -> tuple[socket.socket, Outside, int]:
    made = socket.create_server(("", 0), backlog=64)
    made.settimeout(20)
    outside, port = Outside(), made.getsockname()[1]
    outside.close("0.0.0.0:0", port)
    return made, outside, port


@pytest.mark.long
def test_nobody_in_the_pod_reaches_a_port_whatever_addresses_it_names(
    pod: tuple[Netns, Netns],
) -> None:
    inside, outside = pod
    made, closed, port = inside.call(listening)
    with made:
        assert outside.call(lambda: connects(POD, port))
        for address in ("127.0.0.1", "127.1.2.3", POD):
            for source in ("", "127.0.0.1", "127.1.2.3", POD):
                reaches = functools.partial(connects, address, port, source)
                assert not inside.call(reaches), (address, source)
        closed.release()


def test_the_server_reaches_its_own_port_and_nobody_takes_its_place(
    pod: tuple[Netns, Netns],
) -> None:
    inside, _ = pod
    made, closed, port = inside.call(listening)

    def reaches() -> None:
        with closed.way_in() as way:
            assert way is not None
            connecting, where = way
            connecting.settimeout(20)
            connecting.connect(where)
            accepted, _ = made.accept()
            own = connecting.getsockname()[1]
            with socket.socket() as tool:
                tool.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    tool.bind(("127.0.0.1", own))
                tool.bind(("127.1.2.3", own))
                tool.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    tool.connect(("127.0.0.1", port))
        with accepted, connecting:
            connecting.sendall(b"goes on")
            accepted.settimeout(20)
            assert accepted.recv(16) == b"goes on"
        assert not connects("127.0.0.1", port, "127.0.0.1")

    with made:
        inside.call(reaches)
        closed.release()


def test_a_server_that_listens_on_one_address_is_left_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
        closed = Outside()
        closed.close(f"127.0.0.1:{port}", port)
        assert connects("127.0.0.1", port)
        with closed.way_in() as way:
            assert way is None


def test_where_the_kernel_takes_no_filter_the_port_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(92, "Protocol not available")

    with socket.create_server(("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", Refusing)
            closed = Outside()
            closed.close("0.0.0.0:0", port)
        assert "this server may drop no packets" in caplog.text
        assert connects("127.0.0.1", port)
        with closed.way_in() as way:
            assert way is None


@contextlib.contextmanager
def led_outside(port: int, outside: Netns) -> Iterator[None]:
    """What connects to this port here comes to the pod from outside."""

    opened: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(work: Callable[..., None], *args: socket.socket) -> None:
        threads.append(threading.Thread(target=work, args=args))
        threads[-1].start()

    def relay() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = here.accept()
                opened.append(near)
                far = outside.call(lambda: connected(POD, port))
                if far is None:  # nobody listens yet
                    near.shutdown(socket.SHUT_RDWR)
                    continue
                opened.append(far)
                far.settimeout(None)
                start(pass_on, near, far)
                start(pass_on, far, near)

    with contextlib.ExitStack() as stack:
        here = stack.enter_context(socket.create_server(("127.0.0.1", port)))
        start(relay)
        try:
            yield
        finally:
            here.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for each in opened:
                stack.enter_context(each)
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def own_connections(server: Sandbox, port: int) -> int:
    """Connections in the pod to the server's port."""
    lines = Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]
    rows = [each.split()[1:4] for each in lines]
    return [far for _, far, state in rows if state == _ESTABLISHED].count(f"0100007F:{port:04X}")


TAKES_ALL = """
import socket, sys
kept = []
for address in sys.argv[2:]:
    for _ in range(1100):
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex((address, int(sys.argv[1])))
        kept.append(made)
print("taken", flush=True)
sys.stdin.read()
"""


@pytest.mark.long
def test_tools_take_no_connection_from_a_worker(
    pod: tuple[Netns, Netns], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the server's own, without which it may crash when it takes another certificate."""
    inside, outside = pod
    port = free_port()
    monkeypatch.setattr("support.sandbox_server.free_port", lambda: port)
    listen = {"CLOISTER_LISTEN": f"0.0.0.0:{port}"}
    launcher = ("nsenter", f"--net={inside.path}")
    with (
        led_outside(port, outside),
        sandbox(tmp_path, env=listen, open_files=8192, launcher=launcher) as server,
    ):
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        server.claim()
        # One of its own is held while the new certificate is taken.
        assert own_connections(server, port) == 1
        with server.worker() as channel:
            tools = Tools(channel)
            tools.call("write", file_path="takes.py", content=TAKES_ALL)
            command = f"python3 takes.py {port} 127.0.0.1 {POD}"
            assert (
                tools.bash(f"coproc {command}; read line <&${{COPROC[0]}}; echo $line") == "taken"
            )
        with server.worker() as another:
            assert Tools(another).bash("echo on") == "on"
