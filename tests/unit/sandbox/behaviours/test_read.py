"""Behaviours 17 to 28: read."""

import asyncio
import base64
import os
import random
import socket
import threading
from pathlib import Path

import pytest

from cloister_sandbox import contexts
from cloister_sandbox.config import Config
from cloister_sandbox.contexts import Contexts
from cloister_sandbox.processes import Reaper
from cloister_sandbox.state import ServerState
from cloister_sandbox.toolset.results import ToolResult
from support.reference_toolset import Answer, Both

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="
)
CAP = 262_144
LINES = b"l1\nl2\nl3\n"


def test_row_17_the_exact_text(both: Both) -> None:
    for data in (LINES, b"no end", b"\xef\xbb\xbfone\r\ntwo\r\n", b"\r\r\n\n", b"a\0b\x1b[31m\n"):
        both.write("f", data)
        both.says(data.decode(), "read", file_path="f")
    both.write("f", b"x" * CAP)
    both.says("x" * CAP, "read", file_path="f")


@pytest.mark.parametrize(
    "data", [LINES, b"l1\nl2\nl3", b"l1\n\n\nl4\n\n", b"a\rb\r\nc\x0bd\x85e\n"]
)
def test_row_18_ranges_of_lines(both: Both, data: bytes) -> None:
    both.write("f", data.decode("latin-1").encode())
    both.write("g", data.decode("latin-1").encode() * (CAP // len(data) + 1))
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    for start in range(-1, lines + 1):
        for end in (-1, 0, *range(max(start, 1), lines + 3)):
            both.same("read", file_path="f", view_range=[start, end])
            if end > 0:
                both.same("read", file_path="g", view_range=[start, end])
    both.write("f", LINES)
    both.says("l1\nl2", "read", file_path="f", view_range=[1, 2])
    both.says("l2\nl3\n", "read", file_path="f", view_range=[2, -1])
    both.says("l3\n", "read", file_path="f", view_range=[3, 99])


@pytest.mark.parametrize(
    ("data", "lines"), [(LINES, 3), (b"l1\nl2", 2), (b"", 0), (b"x\n" * 200_000, 200_000)]
)
@pytest.mark.parametrize("view", [[200_001, 200_002], [3_000_000, -1], [5, 4]])
def test_row_19_a_range_beyond_the_file_says_how_long_it_is(
    both: Both, data: bytes, lines: int, view: list[int]
) -> None:
    both.write("f", data)
    assert both.theirs("read", file_path="f", view_range=view) == Answer("(no output)", False)
    said = f"[f has {lines} lines; view_range was [{view[0]}, {view[1]}]]"
    assert both.ours("read", file_path="f", view_range=view) == Answer(said, False)


def test_row_20_a_range_has_two_ends(both: Both) -> None:
    both.write("f", LINES)
    both.says("l1\nl2\nl3\n", "read", file_path="f", view_range=[])
    for wrong in ([1], [1, 2, 3]):
        words = "read: view_range must be [start_line, end_line]"
        both.fails(words, "read", file_path="f", view_range=wrong)


def test_row_21_large_files_need_a_range(both: Both) -> None:
    both.write("big.txt", (b"y" * 79 + b"\n") * 6000)
    both.fails(
        "read: big.txt is 480000 bytes, exceeds 262144-byte limit. Use the view_range parameter "
        "to read specific line ranges, e.g. view_range: [1, 500].",
        "read",
        file_path="big.txt",
    )


def test_row_22_a_range_of_a_large_file_is_bounded(both: Both) -> None:
    both.write("big.txt", (b"y" * 79 + b"\n") * 6000)
    both.fails(
        "read: view_range [1, -1] of big.txt exceeds 262144-byte limit. "
        "Narrow the view_range to read a smaller portion.",
        "read",
        file_path="big.txt",
        view_range=[1, -1],
    )
    for view in ([0, 6000], [-5, 3277], [1, 3276], [1, 3277], [5999, 9999], [6000, 6000]):
        both.same("read", file_path="big.txt", view_range=view)
    both.write("long.txt", b"z" * 300_000 + b"\nshort\n" + b"z" * CAP + b"\n")
    both.fails(
        "read: line 1 of long.txt alone exceeds 262144-byte limit. The read tool cannot return "
        "part of a line, so view_range cannot narrow this further.",
        "read",
        file_path="long.txt",
        view_range=[1, 1],
    )
    both.says("short", "read", file_path="long.txt", view_range=[2, 2])
    for view in ([1, 2], [0, 1], [3, 3], [3, -1], [3, 9]):
        both.same("read", file_path="long.txt", view_range=view)


def test_row_22_any_range_of_any_file(both: Both) -> None:
    chosen = random.Random(22)
    for _ in range(12):
        sizes = [chosen.choice((0, 1, 70, 9_000, 70_000)) for _ in range(chosen.randrange(1, 40))]
        both.write("f", b"\n".join(b"v" * size for size in sizes) + chosen.choice((b"", b"\n")))
        for _ in range(8):
            start = chosen.randrange(-1, len(sizes))
            end = chosen.choice((-1, 0, max(start, 1) + chosen.randrange(12)))
            both.same("read", file_path="f", view_range=[start, end])


def test_row_23_only_regular_files_are_opened(both: Both) -> None:
    both.make(lambda root: (root / "dir").mkdir())
    both.make(lambda root: os.mkfifo(root / "fifo"))

    def listen(root: Path) -> None:
        before = Path.cwd()
        os.chdir(root)  # a socket's path must be short
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind("socket")
        finally:
            os.chdir(before)

    both.make(listen)
    for name in ("dir", "fifo", "socket"):
        both.fails(f"read: {name}: not a regular file", "read", file_path=name)


@pytest.mark.parametrize(
    ("name", "media", "data"),
    [
        ("i.png", "image/png", PNG),
        ("I.PNG", "image/png", PNG),
        ("i.jpg", "image/jpeg", b"\xff\xd8\xff\xe0rest"),
        ("i.JpEg", "image/jpeg", b"\xff\xd8\xff\xe0rest"),
        ("i.gif", "image/gif", b"GIF89arest"),
        ("i.webp", "image/webp", b"RIFF\0\0\0\0WEBPrest"),
        ("d.pdf", "application/pdf", b"%PDF-1.4\n"),
    ],
)
def test_row_24_images_and_documents(both: Both, name: str, media: str, data: bytes) -> None:
    both.write(name, data)
    assert both.same("read", file_path=name).media == media
    words = "read: view_range is not supported for image/PDF files"
    both.fails(words, "read", file_path=name, view_range=[1, 2])


@pytest.mark.parametrize(
    ("name", "data", "cap"),
    [("i.png", PNG, 3_932_160), ("d.pdf", b"%PDF-1.4\n", 20 * 1024 * 1024)],
)
def test_row_25_images_and_documents_are_bounded(
    both: Both, name: str, data: bytes, cap: int
) -> None:
    both.write(name, data.ljust(cap, b"\0"))
    assert not both.same("read", file_path=name).is_error
    both.write(name, data.ljust(cap + 1, b"\0"))
    words = f"read: {name} is {cap + 1} bytes, exceeds {cap}-byte limit for image/PDF files."
    both.fails(words, "read", file_path=name)


def test_row_26_a_name_alone_makes_no_image(both: Both) -> None:
    for name, data, ours in [
        ("text.PNG", b"not a picture\n", Answer("not a picture\n", False)),
        ("empty.png", b"", Answer("read: empty.png: the file is empty, and no image or PDF", True)),
        (
            "noise.gif",
            b"\xff\xfe\x00",
            Answer(
                "read: noise.gif: not valid UTF-8 text, and its bytes are no image or PDF", True
            ),
        ),
    ]:
        both.write(name, data)
        assert both.theirs("read", file_path=name).media.startswith("image/")
        assert both.ours("read", file_path=name) == ours
    both.write("really.png", b"GIF89arest")
    assert both.theirs("read", file_path="really.png").media == "image/png"
    assert both.ours("read", file_path="really.png").media == "image/gif"


def test_row_27_what_is_no_text_is_refused(both: Both) -> None:
    words = "not valid UTF-8 text (binary files are only supported for image/PDF extensions)"
    both.write("bin", b"\x7fELF\xff\xfe\x00")
    both.fails(f"read: bin: {words}", "read", file_path="bin")
    both.fails(f"read: bin: {words}", "read", file_path="bin", view_range=[1, 1])
    for encoding in ("UTF-16", "ISO-8859-1"):
        both.write("text", "Käse\nund Öl\n".encode(encoding))
        assert both.theirs("read", file_path="text") == Answer(f"read: text: {words}", True)
        hint = f"iconv -f {encoding} -t UTF-8"
        ours = both.ours("read", file_path="text")
        assert ours == Answer(f"read: text: {words}; it may be {encoding}: {hint}", True)
        assert both.bash(f"{hint} text") == "Käse\nund Öl"


async def test_row_28_no_file_holds_up_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def slow(*_: object) -> ToolResult:
        reading.set()
        assert go_on.wait(60)
        return ToolResult("read")

    for tool in ("read", "write.write", "write.edit", "search.glob", "search.grep"):
        monkeypatch.setattr(f"{contexts.__name__}.{tool}", slow)
    environ = {"CLOISTER_POD_UID": "u", "CLOISTER_WORKSPACE": str(tmp_path)}
    found = Contexts(Config.from_environment(environ), ServerState(), Reaper())
    cancel = asyncio.get_running_loop().create_future()
    for tool in ("read", "write", "edit", "glob", "grep"):
        reading.clear()
        go_on.clear()
        call = asyncio.create_task(found.run(found.get(tool), tool, {}, 0, cancel))
        # A tool that ran on this loop would never let us go on.
        assert await asyncio.to_thread(reading.wait, 60)
        go_on.set()
        assert (await call).text == "read"


def test_row_22_part_of_a_long_line(both: Both) -> None:
    both.make(lambda root: (root / "long.txt").write_text("ä" + "x" * 400_000 + "end"))
    part = both.ours("read", file_path="long.txt", byte_range=[400_000, 0])
    assert part == Answer("xxend", False)
    assert both.ours("read", file_path="long.txt", byte_range=[0, 3]) == Answer("äx", False)
    assert both.ours("read", file_path="long.txt", byte_range=[1, 3]) == Answer("\ufffdx", False)
    beyond = both.ours("read", file_path="long.txt", byte_range=[500_000, 0])
    assert beyond.text.startswith("[long.txt has 400005 bytes")
    for wrong in ([0, 400_000], [1], [-1, 5]):
        assert both.ours("read", file_path="long.txt", byte_range=wrong).is_error
