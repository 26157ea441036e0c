"""Commands of the bundled cluster."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from . import build, contents, debian, images, lifecycle, oci
from .components import PROGRAMS
from .errors import ClusterError
from .places import here
from .progress import say

NOT_RUNNING = 3
"""Exit code of `status` for a cluster that cannot be used."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="cloister_devcluster",
        description="A real single-node Kubernetes, built from its Go modules, for this checkout.",
        epilog="CLOISTER_CLUSTER names the cluster (default: a hash of the checkout's path), "
        "CLOISTER_CACHE is where binaries and images are kept, CLOISTER_STATE the state.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="check this machine, and install missing Debian packages")
    make = commands.add_parser("build", help="build the binaries that are not in the cache")
    make.add_argument("--only", action="append", default=[], metavar="NAME", help="only this one")
    make.add_argument(
        *("--with",), dest="extra", action="append", default=[], metavar="NAME", help="also kwok"
    )
    commands.add_parser("up", help="start the cluster (builds first), and wait until it is Ready")
    commands.add_parser("down", help="stop the cluster and remove everything of it")
    commands.add_parser("status", help=f"what runs; exit code {NOT_RUNNING} if it cannot be used")
    build_images = commands.add_parser(
        "images", help="build the images and load them into the cluster"
    )
    build_images.add_argument(
        "--engine", help="docker or podman: build there, from a public base; load nothing"
    )
    build_images.add_argument(
        "--full", action="store_true", help="also sandbox-full, with more languages"
    )
    unpack = commands.add_parser("unpack", help="unpack an image's Debian, for tests; print where")
    unpack.add_argument("image", metavar="NAME")
    contents = commands.add_parser(
        "contents", help="print as JSON what packages are in an image that was built"
    )
    contents.add_argument("image", choices=[each.name for each in images.IMAGES])
    load = commands.add_parser("load", help="import image archives into the cluster")
    load.add_argument("archives", nargs="+", type=Path, metavar="FILE")
    commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    binary = commands.add_parser("bin", help="print the path of a built binary, such as kubectl")
    binary.add_argument("name")
    for action in ("start", "stop", "restart", "kill"):
        one = commands.add_parser(action, help=f"{action} one component, for fault tests")
        one.add_argument("component", choices=list(PROGRAMS))
    return top


def run(arguments: argparse.Namespace) -> int:
    """Carry out one command; returns the exit code, raises ClusterError."""
    places = here()
    match arguments.command:
        case "doctor":
            debian.ensure()
            say("this machine has what the cluster needs")
        case "build":
            debian.ensure()
            build.ensure(names=arguments.only, extra=arguments.extra)
        case "up":
            lifecycle.up(places)
        case "down":
            lifecycle.down(places)
        case "status":
            return 0 if lifecycle.status(places) else NOT_RUNNING
        case "images" if arguments.engine:
            images.with_engine(arguments.engine, full=arguments.full)
        case "images":
            debian.ensure()
            config = lifecycle.running(places) if lifecycle.is_there(places) else None
            images.bundled(config, full=arguments.full)
        case "unpack":
            debian.ensure()
            print(images.unpack(arguments.image))
        case "contents":
            with images.mounted(arguments.image) as (root, digest):
                found = [asdict(each) for each in contents.read(root)]
            print(json.dumps({"digest": digest, "packages": found}))
        case "load":
            config = lifecycle.running(places)
            for archive in arguments.archives:
                oci.load(config, archive)
        case "kubeconfig":
            print(places.kubeconfig)
        case "bin":
            path = build.find(arguments.name).path
            if not path.exists():
                raise ClusterError(f"{arguments.name} is not built: run the command `build`")
            print(path)
        case "start" | "stop" | "restart" | "kill":
            lifecycle.control(places, arguments.command, arguments.component)
    return 0


def main() -> int:
    try:
        return run(parser().parse_args())
    except ClusterError as error:
        print(f"devcluster: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("devcluster: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
