"""Write what each image contains, by its own files, as CycloneDX JSON.

Below build/sbom, one file an image. The images must have been built: `make images`.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

import target as targets
from target import IMAGES, ROOT, TargetError

JSON = Mapping[str, Any]
SCHEMA = SchemaVersion.V1_6


def purl(package: JSON) -> PackageURL:
    """The name under which the world knows a package."""
    if package["kind"] == "deb":
        return PackageURL(
            "deb",
            "debian",
            package["name"],
            package["version"],
            {"arch": package["architecture"], "distro": "debian"},
        )
    return PackageURL("pypi", None, package["name"], package["version"])


def component(package: JSON) -> Component:
    """A package as CycloneDX has it."""
    known = purl(package)
    licenses = [LicenseFactory().make_from_string(package["license"])] if package["license"] else []
    return Component(
        name=package["name"],
        version=package["version"],
        type=ComponentType.LIBRARY,
        purl=known,
        bom_ref=known.to_string(),
        licenses=licenses,
    )


def bill(image: str, digest: str, packages: list[JSON]) -> str:
    """The bill of materials of an image, as JSON."""
    bom = Bom()
    name = image.rsplit(":", 1)[0]
    bom.metadata.component = Component(
        name=name,
        version=digest,
        type=ComponentType.CONTAINER,
        bom_ref=f"{name}@{digest}",
    )
    for each in packages:
        bom.components.add(component(each))
    bom.register_dependency(bom.metadata.component, bom.components)
    return make_outputter(bom, OutputFormat.JSON, SCHEMA).output_as_string(indent=2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "sbom", help="the folder")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, image in IMAGES.items():
            # Its last line; before it may say that it waits for a build.
            said = targets.devcluster("contents", name, quiet=True).splitlines()
            found = json.loads(said[-1])
            path = folder / f"{name}.cdx.json"
            path.write_text(bill(image, found["digest"], found["packages"]) + "\n")
            print(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}: "
                  f"{len(found['packages'])} packages")  # fmt: skip
    except TargetError as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
