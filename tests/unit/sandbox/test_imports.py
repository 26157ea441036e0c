"""What the server's process does without, so that it starts sooner and stays small."""

import os
import subprocess
import sys
from pathlib import Path

from support.sandbox_server import Sandbox

_LIMITED = """
openssl_conf = all
[all]
ssl_conf = known
[known]
system_default = given
[given]
MaxProtocol = TLSv1.2
"""
_LOADS = """
import sys
if len(sys.argv) > 1:
    import cloister_sandbox.__main__
for each in ("ssl", "_hashlib"):
    sys.modules.pop(each, None)
import ssl
print(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).maximum_version.name)
"""
_SCRIPT = """
import sys
import cloister_sandbox.__main__
from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2
from cloister_api.exec.v1 import exec_pb2

request = exec_pb2.CallRequest(request_id="one", tool="read")
request.input.update({"file_path": "a", "lines": [1, {"b": None}], "all": True})
request.budget.FromMicroseconds(1_500_000)
again = exec_pb2.CallRequest.FromString(request.SerializeToString())
copy = exec_pb2.CallRequest()
copy.CopyFrom(again)
assert copy == request
assert dict(copy.input)["all"] is True and copy.input["lines"][1]["b"] is None
assert copy.budget.ToMicroseconds() == 1_500_000
assert 'request_id: "one"' in str(copy) and "CallRequest" in repr(type(copy))
assert exec_pb2.OutputEvent(exited=exec_pb2.ExitInfo(code=1)).HasField("exited")
assert exec_pb2.ExecFailure.Kind.Value("KIND_OTHER") > 0
try:
    exec_pb2.CallRequest.FromString(b"\\xff")
except Exception as error:
    assert type(error).__name__ == "DecodeError", error
else:
    raise AssertionError("a malformed message was read")
print(*sorted(sys.modules))
"""


def test_messages_work_without_the_implementation_in_python() -> None:
    paths = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        env={"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    unwanted = {
        "google.protobuf.text_format",
        "google.protobuf.internal.decoder",
        "platform",
        "uuid",
        "pydantic",
    }
    assert "cloister_sandbox.server" in loaded
    assert loaded & unwanted == set()


def test_no_file_of_an_environment_tells_openssl_what_to_load(tmp_path: Path) -> None:
    """Such a file names libraries, too, and the server is who would run them."""
    file = tmp_path / "openssl.cnf"
    file.write_text(_LIMITED)
    paths = os.pathsep.join(each for each in sys.path if each)
    seen = [
        subprocess.run(
            [sys.executable, "-c", _LOADS, *as_the_server],
            env={"PYTHONPATH": paths, "OPENSSL_CONF": str(file)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for as_the_server in ([], ["server"])
    ]
    assert seen == ["TLSv1_2", "MAXIMUM_SUPPORTED"]


def test_the_server_has_no_openssl(claimed: Sandbox) -> None:
    loaded = Path(f"/proc/{claimed.process.pid}/maps").read_text()
    assert "cygrpc" in loaded
    assert "libssl" not in loaded
    assert "libcrypto" not in loaded


def test_the_servers_python_is_where_no_environment_brings_files() -> None:
    recipe = Path(__file__).parents[3] / "sandbox-image" / "Dockerfile"
    made = [line for line in recipe.read_text().splitlines() if " -m venv " in line]
    assert [line.split()[1] for line in made] == ["/usr/bin/python3"]
