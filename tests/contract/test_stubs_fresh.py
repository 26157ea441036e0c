"""The committed gRPC stubs are what the .proto files say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTO = ROOT / "proto"


def test_stubs_are_fresh(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.path.insert(0, 'scripts');"
        "import generate_stubs; generate_stubs.generate(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True, capture_output=True
    )
    generated = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    committed = {
        path.relative_to(PROTO): path.read_text()
        for path in PROTO.rglob("*_pb2*")
        if path.suffix in (".py", ".pyi")
    }
    assert generated.keys() == committed.keys()
    stale = [str(name) for name, text in generated.items() if committed[name] != text]
    assert not stale, f"run `make generate`: {stale}"


def test_every_rpc_says_when_to_use_it() -> None:
    for proto in PROTO.rglob("*.proto"):
        lines = proto.read_text().splitlines()
        for number, line in enumerate(lines):
            if line.strip().startswith("rpc "):
                assert lines[number - 1].strip().startswith("//"), f"{proto.name}:{number + 1}"
