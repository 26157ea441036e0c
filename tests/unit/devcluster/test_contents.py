"""What is read of an image, and the bill of materials that is made of it."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from cloister_devcluster.contents import Package, read
from support.chart import ROOT

STATUS = """\
Package: squid-openssl
Status: install ok installed
Architecture: amd64
Version: 5.7-2+deb12u6
Description: proxy
 with a line that says
 Package: nothing

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: tzdata
Status: install ok installed
Architecture: all
Version: 2026a-0+deb12u1
"""
METADATA = """\
Metadata-Version: 2.4
Name: Typing_Extensions
Version: 4.15.0
License-Expression: PSF-2.0

Name: not this one
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image's root."""
    dpkg = tmp_path / "var/lib/dpkg/status"
    dpkg.parent.mkdir(parents=True)
    dpkg.write_text(STATUS)
    info = tmp_path / "opt/lib/python3.11/site-packages/typing_extensions-4.15.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(METADATA)
    return tmp_path


@pytest.fixture
def sbom(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/sbom.py."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "scripts" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sbom", module)
    spec.loader.exec_module(module)
    return module


def test_what_is_installed_is_read(root: Path) -> None:
    assert read(root) == [
        Package("deb", "squid-openssl", "5.7-2+deb12u6", "amd64"),
        Package("deb", "tzdata", "2026a-0+deb12u1", "all"),
        Package("pypi", "typing-extensions", "4.15.0", license="PSF-2.0"),
    ]


def test_an_image_without_packages_has_none(tmp_path: Path) -> None:
    assert read(tmp_path) == []


def test_the_bill_names_the_image_and_each_package_as_scanners_know_it(
    root: Path, sbom: ModuleType
) -> None:
    packages = [vars(each) for each in read(root)]
    bill = json.loads(sbom.bill("localhost/cloister/x:dev", "sha256:ab", packages))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    image = bill["metadata"]["component"]
    assert (image["type"], image["name"], image["version"]) == (
        "container",
        "localhost/cloister/x",
        "sha256:ab",
    )
    assert {each["purl"] for each in bill["components"]} == {
        "pkg:deb/debian/squid-openssl@5.7-2%2Bdeb12u6?arch=amd64&distro=debian",
        "pkg:deb/debian/tzdata@2026a-0%2Bdeb12u1?arch=all&distro=debian",
        "pkg:pypi/typing-extensions@4.15.0",
    }
    (licensed,) = [each for each in bill["components"] if "licenses" in each]
    assert licensed["licenses"] == [{"license": {"id": "PSF-2.0"}}]
