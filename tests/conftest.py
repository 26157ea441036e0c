"""Shared by all tests: the golden-file switch, and a fence around the network.

Unit and contract tests talk to loopback only: a test that reaches for anything else fails at once.
"""

import gc
import ipaddress
import socket
from typing import Any

import hypothesis
import pytest

# The same examples in every run, so that a red test is about the change; and no limit on the time
# that one takes, which would be about the machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")

# A collection that looks at every module and test again and again costs more than what it finds.
gc.set_threshold(50_000, 20, 20)


def pytest_collection_finish() -> None:
    """What was imported stays: no later collection looks at it."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """File by file, a little better than xdist does it; its other ways are as they are."""
    if config.getvalue("dist") != "loadfile":
        return None
    from support.scheduling import Scheduling

    return Scheduling(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite golden files instead of comparing with them",
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def loopback_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to anything but loopback, except in end-to-end tests."""
    if request.node.get_closest_marker("e2e"):
        return
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                raise RuntimeError(f"unit tests may not connect to {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
