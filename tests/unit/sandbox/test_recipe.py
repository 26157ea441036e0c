"""What the Environment asks for is done before the pod is warm, or the pod says why not."""

import contextlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.recipe import place
from support.file_calls import eventually, frames
from support.sandbox_server import Sandbox, Tools, processes_with, refused, sandbox

WARM, FAILED = exec_pb2.RuntimeInfo.STATE_WARM, exec_pb2.RuntimeInfo.STATE_FAILED


def claimed_tools(server: Sandbox, **fields: Any) -> Tools:
    server.wait_for(WARM)
    server.claim(**fields)
    return Tools(server.worker())


@pytest.mark.parametrize("mode", [0o644, 0o600, 0o755, 0o444, 0o000])
def test_files_are_placed_with_their_exact_modes(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s" / "workspace" / "deep" / "f.bin"
    recipe = {"copies": [{"source": "f0", "path": str(path), "mode": mode}]}
    with sandbox(tmp_path / "s", recipe, f0=b"\x00\xff") as server:
        server.wait_for(WARM)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    path.chmod(0o600)
    assert path.read_bytes() == b"\x00\xff"
    assert [each.name for each in path.parent.iterdir()] == ["f.bin"]


def test_a_workspace_of_an_earlier_pod_keeps_what_tools_made_of_its_files(tmp_path: Path) -> None:
    workspace, elsewhere = tmp_path / "first" / "workspace", tmp_path / "elsewhere"
    changed, removed, outside = workspace / "changed", workspace / "removed", elsewhere / "f"
    elsewhere.mkdir()
    recipe = {
        "copies": [
            {"source": "f0", "path": str(each), "mode": 0o644}
            for each in (changed, removed, outside)
        ],
        "setup": "echo again >> setup.txt",
    }
    with sandbox(tmp_path / "first", recipe, f0=b"new") as server:
        server.wait_for(WARM)
    changed.write_text("mine")
    removed.unlink()
    removed.symlink_to("nowhere")
    outside.unlink()
    kept = {"CLOISTER_KEPT_ROOTS": f"{workspace}:/no", "CLOISTER_WORKSPACE": str(workspace)}
    with sandbox(tmp_path / "second", recipe, env=kept, f0=b"new") as server:
        server.wait_for(WARM)
    assert changed.read_text() == "mine"
    assert removed.is_symlink()
    assert outside.read_bytes() == b"new"
    assert (workspace / "setup.txt").read_text() == "again\nagain\n"


def test_the_setup_script_runs_once_with_files_and_variables(tmp_path: Path) -> None:
    path = tmp_path / "s" / "workspace" / "in.txt"
    recipe = {
        "env": {"GREETING": "good morning", "HOME": str(tmp_path)},
        "copies": [{"source": "f0", "path": str(path), "mode": 0o644}],
        "setup": 'echo "$GREETING $(cat in.txt) $PWD $HOME" >> setup.txt',
    }
    with sandbox(tmp_path / "s", recipe, f0=b"file") as server:
        tools = claimed_tools(server, env={"GREETING": "evening", "MORE": "1"})
        workspace = str(server.workspace)
        expected = f"good morning file {workspace} {tmp_path}\n"
        assert tools.text("read", file_path="setup.txt") == expected
        assert tools.bash("echo $GREETING $MORE $PWD") == f"evening 1 {workspace}"


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        (
            {"setup": "echo what went wrong >&2; exit 3"},
            "the setup script ended with exit code 3: what went wrong",
        ),
        (
            {"setup": "sleep 4718 & setsid sleep 4718 & wait", "setupTimeoutSeconds": 0.3},
            "the setup script took longer than 0.3 s",
        ),
        ({"setup": "echo )"}, "the setup script ended with exit code 2: "),
        (
            {"copies": [{"source": "f0", "path": "/proc/nowhere/f", "mode": 420}]},
            "file /proc/nowhere/f cannot be placed: ",
        ),
        (
            {"copies": [{"source": "gone", "path": "/tmp/never-placed", "mode": 420}]},
            "file /tmp/never-placed cannot be placed: No such file or directory",
        ),
        ({"copies": [{"path": "/tmp/x"}]}, "recipe.json cannot be read: "),
        ([], "recipe.json cannot be read: "),
    ],
    ids=["exit", "timeout", "syntax", "place", "payload", "copy", "shape"],
)
def test_a_recipe_that_fails_says_why_and_is_never_warm(
    tmp_path: Path, recipe: Any, problem: str
) -> None:
    with sandbox(tmp_path, recipe, f0=b"") as server:
        info = server.wait_for(FAILED)
        assert info.problem.startswith(problem)
        assert processes_with(f"HOME={tmp_path / 'home'}") == []
        with refused(grpc.StatusCode.UNAVAILABLE, reason="NOT_WARM"):
            server.claim()


def test_a_recipe_that_is_no_json_fails(tmp_path: Path) -> None:
    broken: dict[str, Any] = {"recipe.json": b"{"}
    with sandbox(tmp_path, {}, **broken) as server:
        assert server.wait_for(FAILED).problem.startswith("recipe.json cannot be read: ")


def test_the_setup_script_waits_until_the_network_is_proven(tmp_path: Path) -> None:
    with sandbox(tmp_path / "s", {"setup": "echo ran > setup.txt"}) as server:
        with server.operator() as channel:
            stub = exec_pb2_grpc.RuntimeStub(channel)
            while not stub.Info(exec_pb2.InfoRequest(), wait_for_ready=True).awaits_proof:
                pass
            stub.Probe(exec_pb2.ProbeRequest(targets=["127.0.0.1:1"]), timeout=5)
            info = stub.Info(exec_pb2.InfoRequest())
            assert (info.state, info.awaits_proof) == (exec_pb2.RuntimeInfo.STATE_PREPARING, True)
            assert not (server.workspace / "setup.txt").exists()
            stub.Prepare(exec_pb2.PrepareRequest(), timeout=5)
        server.wait_for(exec_pb2.RuntimeInfo.STATE_WARM)
        assert (server.workspace / "setup.txt").read_text() == "ran\n"


def test_only_the_operator_is_answered_while_the_setup_runs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    recipe = {"setup": f"until test -e {gate}; do sleep 0.01; done"}
    with sandbox(tmp_path / "s", recipe) as server:
        server.wait_for(exec_pb2.RuntimeInfo.STATE_PREPARING)
        with refused(grpc.StatusCode.UNAVAILABLE, reason="NOT_WARM"):
            server.claim()
        with server.operator() as channel:
            health: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            assert health(b"", timeout=5) == b"\x08\x02"
        gate.touch()
        server.wait_for(WARM)


def test_background_processes_of_the_setup_do_not_outlive_it(tmp_path: Path) -> None:
    with sandbox(tmp_path / "s", {"setup": "sleep 4719 & setsid sleep 4719 &"}) as server:
        server.wait_for(WARM)
        assert processes_with(f"HOME={tmp_path / 's' / 'home'}") == []


def test_limits_hold_for_the_server_and_all_that_it_starts(tmp_path: Path) -> None:
    recipe = {"limits": {"fileBytes": 8_000_000, "processes": 900, "of a newer operator": 1}}
    with sandbox(tmp_path / "s", recipe) as server:
        tools = claimed_tools(server)
        assert tools.bash("ulimit -Hf; ulimit -Sf") == f"{8_000_000 // 1024}\n{8_000_000 // 1024}"
        assert tools.bash("ulimit -Hu; ulimit -Su") == "900\n900"
        made = tools.call("bash", command="head -c 9000000 /dev/zero > big; wc -c < big")
        assert "8000000" in made.content[0].text
        pid = server.process.pid
        assert "8000000" in Path(f"/proc/{pid}/limits").read_text()
        # The server itself stays well where a tool has used up what there is.
        assert tools.text("write", file_path="small", content="x")


@pytest.mark.parametrize("limits", [{"fileBytes": "many"}, [], {"processes": -5}])
def test_limits_that_cannot_be_are_said(tmp_path: Path, limits: Any) -> None:
    with sandbox(tmp_path / "s", {"limits": limits}) as server:
        info = server.wait_for(FAILED)
        assert "recipe.json cannot be read" in info.problem or "cannot be set" in info.problem


def test_the_server_says_whose_users_are_inside(tmp_path: Path) -> None:
    with sandbox(tmp_path / "s", {}) as server:
        info = server.wait_for(WARM)
        assert info.uid_map.split() == Path("/proc/self/uid_map").read_text().split()
    launcher = ("unshare", "--user", "--map-root-user")
    with sandbox(tmp_path / "t", {}, launcher=launcher) as server:
        assert server.wait_for(WARM).uid_map.split() == ["0", "0", "1"]


def archive(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as made:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size, header.mode = len(content), 0o755
            made.addfile(header, io.BytesIO(content))
    return out.getvalue()


def test_the_setup_waits_for_the_files_that_the_operator_brings(tmp_path: Path) -> None:
    trees = [str(tmp_path / "s" / "workspace" / each) for each in ("one", "two")]
    recipe = {
        "trees": [{"path": each, "commit": "c"} for each in trees],
        "setup": "cat one/f two/f > setup.txt",
    }
    with sandbox(tmp_path / "s", recipe) as server, server.operator() as channel:
        files = exec_pb2_grpc.FilesStub(channel)
        runtime = exec_pb2_grpc.RuntimeStub(channel)
        info = server.wait_for(exec_pb2.RuntimeInfo.STATE_PREPARING)
        eventually(lambda: list(runtime.Info(exec_pb2.InfoRequest()).awaits) == trees)
        assert "recipe.trees" in info.capabilities
        # Nothing else is taken before the claim, and no archive that leads out.
        for path, tree in ((trees[0], False), (f"{trees[0]}/x", True), ("/tmp/x", True)):
            with refused(grpc.StatusCode.UNAVAILABLE, reason="NOT_CLAIMED"):
                files.Upload(frames(path, archive(f=b"x"), tree=tree))
        with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="MEMBER_REFUSED"):
            files.Upload(frames(trees[0], archive(**{"../out": b"x"}), tree=True))
        files.Upload(frames(trees[0], archive(f=b"one"), tree=True))
        info = runtime.Info(exec_pb2.InfoRequest())
        assert (list(info.awaits), info.state) == (trees[1:], exec_pb2.RuntimeInfo.STATE_PREPARING)
        files.Upload(frames(trees[1], archive(f=b"two"), tree=True))
        assert list(server.wait_for(WARM).awaits) == []
        with refused(grpc.StatusCode.UNAVAILABLE, reason="NOT_CLAIMED"):
            files.Upload(frames(trees[0], archive(f=b"x"), tree=True))
        assert (server.workspace / "setup.txt").read_bytes() == b"onetwo"


@contextlib.contextmanager
def preparing(tmp_path: Path, waits_for: str) -> Iterator[tuple[Sandbox, grpc.Channel]]:
    """A server that waits for files, for its proof or for the end of a setup script, and the
    operator's channel to it.
    """
    trees = [{"path": str(tmp_path / "s" / "workspace" / "x"), "commit": "c"}]
    setup = "echo > begun; exec sleep 4723"
    recipe: dict[str, Any] = {"trees": trees} if waits_for == "files" else {"setup": setup}
    with sandbox(tmp_path / "s", recipe) as server, server.operator() as channel:
        runtime = exec_pb2_grpc.RuntimeStub(channel)
        server.wait_for(exec_pb2.RuntimeInfo.STATE_PREPARING)

        def info() -> exec_pb2.RuntimeInfo:
            return runtime.Info(exec_pb2.InfoRequest(), timeout=5)

        eventually(lambda: info().awaits if waits_for == "files" else info().awaits_proof)
        if waits_for == "setup":
            runtime.Prepare(exec_pb2.PrepareRequest(), timeout=5)
            eventually((server.workspace / "begun").exists)
        yield server, channel


@pytest.mark.parametrize("waits_for", ["files", "proof", "setup"])
def test_a_pod_that_is_being_prepared_ends_when_it_is_told_to(
    tmp_path: Path, waits_for: str
) -> None:
    with preparing(tmp_path, waits_for) as (server, _):
        server.process.terminate()
        assert server.process.wait(timeout=20) == 143


@pytest.mark.parametrize("waits_for", ["files", "proof", "setup"])
def test_a_pod_that_is_drained_waits_for_nothing_and_runs_no_setup(
    tmp_path: Path, waits_for: str
) -> None:
    with preparing(tmp_path, waits_for) as (_, channel):
        runtime = exec_pb2_grpc.RuntimeStub(channel)
        runtime.Drain(exec_pb2.DrainRequest(), timeout=20)
        info = runtime.Info(exec_pb2.InfoRequest(), timeout=5)
        assert info.state == exec_pb2.RuntimeInfo.STATE_DRAINING
        assert (list(info.awaits), info.awaits_proof) == ([], False)
        assert processes_with(f"HOME={tmp_path / 's' / 'home'}") == []
        path = str(tmp_path / "s" / "workspace" / "x")
        with refused(grpc.StatusCode.UNAVAILABLE, reason="DRAINING"):
            exec_pb2_grpc.FilesStub(channel).Upload(frames(path, archive(f=b"x"), tree=True))


def test_a_workspace_of_an_earlier_pod_waits_for_no_repository(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "project").mkdir(parents=True)
    recipe = {"trees": [{"path": str(kept / "project"), "commit": "c"}]}
    with sandbox(tmp_path / "s", recipe, env={"CLOISTER_KEPT_ROOTS": str(kept)}) as server:
        server.wait_for(WARM)


def test_a_file_is_placed_whatever_lies_in_its_way(tmp_path: Path) -> None:
    """Tools of an earlier pod have had the workspace."""
    os.mkfifo(tmp_path / "f")
    place(str(tmp_path / "f"), 0o640, b"content")
    assert (tmp_path / "f").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["f"]
