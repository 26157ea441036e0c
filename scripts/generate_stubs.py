"""Generate the gRPC stubs beside their .proto files.

Run by `make generate`, and by the test that compares its output with the committed stubs.
"""

import os
import sys
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"


def generate(out: Path) -> None:
    """Write all stubs below `out`, laid out like `proto/`.

    Raises RuntimeError with protoc's exit code when a .proto file does not compile; protoc has then
    printed the file, the line and the reason.
    """
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    # protoc looks for its plugins on PATH only; ours live beside this interpreter.
    bin_dir = str(Path(sys.executable).parent)
    os.environ["PATH"] = bin_dir + os.pathsep + os.environ.get("PATH", "")
    well_known = resources.files("grpc_tools") / "_proto"
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTO}",
            f"-I{well_known}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out={out}",
            f"--mypy_grpc_out={out}",
            *sources,
        ]
    )
    if code:
        raise RuntimeError(f"protoc failed with exit code {code}")


if __name__ == "__main__":
    generate(PROTO)
    sys.exit(0)
