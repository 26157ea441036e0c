"""Package managers say where they get their packages, before any tool could speak for them."""

from pathlib import Path

import grpc

from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from cloister_sandbox.registries import MAX_SOURCES, parse
from support.sandbox_server import SESSION_NAME, Sandbox, refused, sandbox

WARM = exec_pb2.RuntimeInfo.STATE_WARM
TOOLS = {
    "python3": """
        case "$*" in
          *global.index-url) exit 1;;
          *extra-index-url) printf "https://one.example/simple https://two.example/\\n";;
          -c*) printf "https://index.example/simple\\nhttps://files.example/\\n";;
        esac""",
    "npm": 'echo "npm notice a line"; echo https://npm.example/; echo https://not-ours.example >&2',
    "go": """
        if [ "$2" = GOPROXY ]; then echo "https://go.example,https://more.example|direct"; fi
        if [ "$2" = GOSUMDB ]; then echo "sum.example"; fi""",
    "gem": 'printf "*** CURRENT SOURCES ***\\n\\nhttps://gems.example/\\n"',
    "apt-get": """
        test "$*" = 'indextargets --format $(REPO_URI)' || exit 9
        for each in 1 2 3; do echo http://debian.example/debian/; done""",
    "cargo": "# sparse+https://crates.example/ is what a program of that name would have built in",
}
EXPECTED = [
    ("apt", "http://debian.example/debian/"),
    ("cargo", "https://crates.example/"),
    ("gem", "https://gems.example/"),
    ("go", "https://go.example"),
    ("go", "https://more.example"),
    ("go-checksums", "https://sum.example/"),
    ("npm", "https://npm.example/"),
    ("pip", "https://files.example/"),
    ("pip", "https://index.example/simple"),
    ("pip", "https://one.example/simple"),
    ("pip", "https://two.example/"),
]


def with_tools(directory: Path, tools: dict[str, str]) -> tuple[str, ...]:
    """A launcher that lets the server find these tools before all others, and no other managers."""
    directory.mkdir()
    for name in TOOLS:
        made = directory / name
        made.write_text("#!/bin/bash\n" + tools.get(name, "exit 1"))
        made.chmod(0o755)
    mount = f'mount --bind {directory} /usr/local/sbin && exec "$@"'
    return ("unshare", "--mount", "bash", "-c", mount, "-")


def ask(server: Sandbox) -> list[tuple[str, str]]:
    stub = exec_pb2_grpc.RuntimeStub(server.operator())
    answer = stub.PackageSources(exec_pb2.PackageSourcesRequest(), timeout=90)
    return [(each.manager, each.url) for each in answer.sources]


def test_each_manager_is_asked(tmp_path: Path) -> None:
    launcher = with_tools(tmp_path / "tools", TOOLS)
    with sandbox(tmp_path / "s", {}, launcher=launcher) as server:
        server.wait_for(WARM)
        assert ask(server) == EXPECTED
        # They are asked once: the answer is the image's, whatever comes later.
        (tmp_path / "tools" / "npm").write_text("#!/bin/bash\necho https://later.example/")
        assert ask(server) == EXPECTED


def test_managers_that_are_not_there_or_fail_say_nothing(tmp_path: Path) -> None:
    launcher = with_tools(tmp_path / "tools", {"npm": "echo https://npm.example/; exit 1"})
    with sandbox(tmp_path / "s", {}, launcher=launcher) as server:
        server.wait_for(WARM)
        assert ask(server) == [("npm", "https://npm.example/")]


def test_nobody_asks_once_the_pod_is_claimed(tmp_path: Path) -> None:
    with sandbox(tmp_path / "s", {}) as server:
        server.wait_for(WARM)
        server.claim()
        stub = exec_pb2_grpc.RuntimeStub(server.worker())
        with refused(grpc.StatusCode.PERMISSION_DENIED):
            stub.PackageSources(exec_pb2.PackageSourcesRequest(), timeout=20)
        outside = exec_pb2_grpc.RuntimeStub(server.operator(SESSION_NAME))
        with refused(grpc.StatusCode.FAILED_PRECONDITION, reason="CLAIMED"):
            outside.PackageSources(exec_pb2.PackageSourcesRequest(), timeout=20)


def test_lines_that_are_none_of_ours_are_left_out() -> None:
    assert parse("pip https://a.example/\nnoise\na b c\n\npip https://a.example/\n") == [
        ("pip", "https://a.example/")
    ]
    many = "\n".join(f"pip https://h{index}.example/" for index in range(10_000))
    assert len(parse(many)) == MAX_SOURCES
