"""Connections that fail before anybody answers them: their callers choose how many there are."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloister_operator.identity import Authority

SERVES = """
import asyncio, sys
from pathlib import Path
{loaded}
import grpc

async def main():
    server = grpc.aio.server()
    key, certificate, ca = (Path(each).read_bytes() for each in sys.argv[1:])
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    for _ in range(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\\r\\n\\r\\n")
        await reader.read()
        writer.close()
    await server.stop(None)

asyncio.run(main())
"""
OPERATOR = "import cloister_operator.__main__"
AGENT = (
    "from cloister_gateway.__main__ import _agent\n"
    "from cloister_gateway.settings import Settings\n"
    "from unittest import mock\n"
    "with mock.patch('asyncio.run', lambda each: each.close()): _agent(mock.Mock(spec=Settings))"
)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A key, its certificate and the CA, in PEM."""
    now = datetime.now(UTC)
    authority = Authority.create(now)
    made = authority.egress_gateway_server(now)
    contents = made.private_key_pem, made.certificate_pem, authority.ca_pem
    paths = [tmp_path / name for name in ("key", "certificate", "ca")]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return [str(each) for each in paths]


def told(loaded: str, files: list[str]) -> str:
    """What a server of this process writes beside its own log."""
    done = subprocess.run(
        [sys.executable, "-c", SERVES.format(loaded=loaded), *files],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_grpc_would_tell_of_each(files: list[str]) -> None:
    assert told("", files).count("\n") >= 5


@pytest.mark.parametrize("loaded", [OPERATOR, AGENT], ids=["operator", "agent"])
def test_they_fill_no_log(files: list[str], loaded: str) -> None:
    assert told(loaded, files) == ""
