"""What decides that an image is built again, and image archives."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from cloister_devcluster import images, inputs, oci
from cloister_devcluster.images import IMAGES, Image
from cloister_devcluster.places import ROOT


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with the least that the sandbox image needs."""
    root = tmp_path / "tree"
    image = sandbox()
    for name in (image.dockerfile, *image.extra, "requirements/sandbox.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in image.sources:
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text(f'"""{name}."""\n')
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "one.whl").write_bytes(b"wheel")
    monkeypatch.setattr(images, "ROOT", root)
    monkeypatch.setattr(inputs, "wheels", lambda _: wheels)
    return root


def sandbox() -> Image:
    return next(each for each in IMAGES if each.name == "sandbox")


def key(tmp_path: Path) -> str:
    context = tmp_path / "context"
    shutil.rmtree(context, ignore_errors=True)
    return images.stage(sandbox(), context)


def test_the_same_content_has_the_same_key(tree: Path, tmp_path: Path) -> None:
    before = key(tmp_path)
    source = tree / "sandbox-image/src/cloister_sandbox/__init__.py"
    source.touch()
    (source.parent / "__pycache__").mkdir()
    (source.parent / "__pycache__" / "x.pyc").write_bytes(b"compiled")
    assert key(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        "sandbox-image/src/cloister_sandbox/__init__.py",
        "proto/cloister_api/__init__.py",
        "sandbox-image/Dockerfile",
        "sandbox-image/packages.base.txt",
        "requirements/sandbox.txt",
    ],
)
def test_every_input_changes_the_key(tree: Path, tmp_path: Path, name: str) -> None:
    before = key(tmp_path)
    path = tree / name
    path.write_text(path.read_text() + "\nmore\n")
    assert key(tmp_path) != before


def test_the_context_holds_no_more_than_the_image_needs(tree: Path, tmp_path: Path) -> None:
    (tree / "sandbox-image/src/cloister_sandbox/x.pyi").write_text("")
    key(tmp_path)
    names = {path.name for path in (tmp_path / "context").rglob("*") if path.is_file()}
    assert "x.pyi" not in names
    assert {"Dockerfile", "requirements.txt", "one.whl", "__init__.py"} <= names


def test_package_lists_have_no_comments_and_no_doubles() -> None:
    for name in ("packages.base.txt", "packages.full.txt"):
        packages = inputs.package_list(ROOT / "sandbox-image" / name)
        assert packages == sorted(set(packages))
        assert all(each.replace("-", "").replace("+", "").isalnum() for each in packages)


def test_a_base_is_named_by_its_packages_in_any_order() -> None:
    assert inputs.base_key(["a", "b"]) == inputs.base_key(["b", "a"])
    assert inputs.base_key(["a"]) != inputs.base_key(["a", "b"])


DEB822 = "Types: deb\nURIs: http://mirror.example/debian\nSuites: {}\nComponents: main\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEB822.format("bookworm bookworm-updates"), True),
        (DEB822.format("bookworm-security"), True),
        (DEB822.format("nodistro"), False),
        (DEB822.format("trixie"), False),
        ("deb http://mirror.example/debian bookworm main\n", True),
        ("deb [signed-by=/k.gpg] http://mirror.example/debian bookworm main\n", True),
        (
            "deb [arch=amd64 lang=none signed-by=/k.gpg] http://mirror.example/x stable main\n",
            False,
        ),
        ("# deb http://mirror.example/debian bookworm main\n", False),
        ("", False),
    ],
)
def test_only_sources_of_this_debian_are_taken(text: str, expected: bool) -> None:
    assert inputs.is_debian_source(text) is expected


def unpack(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for member in tar.getmembers():
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
        return found


def test_a_packed_image_is_a_valid_layout() -> None:
    files = unpack(oci.pack("localhost/pause:1", b"program", "amd64"))
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert Path(name).name == hashlib.sha256(data).hexdigest()
    entry = json.loads(files["index.json"])["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/pause:1"
    manifest = blob(files, entry)
    parsed: dict[str, Any] = json.loads(manifest)
    configuration = json.loads(blob(files, parsed["config"]))
    layer = blob(files, parsed["layers"][0])
    assert configuration["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    assert unpack(layer) == {"pause": b"program"}


def blob(files: dict[str, bytes], entry: dict[str, Any]) -> bytes:
    data = files["blobs/sha256/" + entry["digest"].removeprefix("sha256:")]
    assert len(data) == entry["size"]
    return data


def test_packing_is_reproducible() -> None:
    assert oci.pack("a:1", b"x", "amd64") == oci.pack("a:1", b"x", "amd64")


def test_pruning_keeps_what_an_image_needs(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    with tarfile.open(fileobj=io.BytesIO(oci.pack("a:1", b"x", "amd64"))) as tar:
        tar.extractall(layout, filter="data")
    stale = layout / "blobs" / "sha256" / ("0" * 64)
    stale.write_bytes(b"stale")
    before = sorted(path.name for path in stale.parent.iterdir() if path != stale)
    oci.prune(layout)
    assert sorted(path.name for path in stale.parent.iterdir()) == before
    assert oci.manifest(layout, "1") is not None
    assert oci.manifest(layout, "2") is None
