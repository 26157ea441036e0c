"""The cluster that the demo, the deployment and the end-to-end tests work on."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SYSTEM_NAMESPACE = "cloister-system"
SANDBOX_NAMESPACE = "cloister-sandboxes"
IMAGES = {
    "operator": "localhost/cloister/operator:dev",
    "sandbox": "localhost/cloister/sandbox:dev",
    "client": "localhost/cloister/client:dev",
    "egress-gateway": "localhost/cloister/egress-gateway:dev",
}


class TargetError(Exception):
    """The cluster cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Target:
    """A cluster and the programs that reach it."""

    kubectl_path: str
    helm_path: str
    kubeconfig: str | None
    """Path of the kubeconfig; None is kubectl's own default."""
    bundled: bool

    @property
    def env(self) -> dict[str, str]:
        """The environment for programs that use the cluster."""
        extra = {"KUBECONFIG": self.kubeconfig} if self.kubeconfig else {}
        return {**os.environ, "KUBECTL": self.kubectl_path, "HELM": self.helm_path, **extra}

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it prints; raises TargetError with its error output."""
        return self._run([self.kubectl_path, *args], stdin)

    def helm(self, *args: str) -> str:
        """Run helm and return what it prints; raises TargetError with its error output."""
        return self._run([self.helm_path, *args], None)

    def _run(self, command: list[str], stdin: str | None) -> str:
        result = subprocess.run(
            command, input=stdin, env=self.env, capture_output=True, text=True, check=False
        )
        if result.returncode:
            name = Path(command[0]).name
            raise TargetError(f"{name} {command[1]} failed: {result.stderr.strip()}")
        return result.stdout


def devcluster(*args: str, quiet: bool = False) -> str:
    """Run a command of the bundled cluster; its progress goes to the terminal unless `quiet`.

    Returns what it prints when `quiet`. Raises TargetError when it fails.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT / "devcluster" / "src")}
    result = subprocess.run(
        [sys.executable, "-m", "cloister_devcluster", *args],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE if quiet else None,
        text=True,
        check=False,
    )
    if result.returncode:
        raise TargetError(f"the bundled cluster's `{' '.join(args)}` failed, see above")
    return (result.stdout or "").strip()


def bundled_runs() -> bool:
    """Whether the bundled cluster is up."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "devcluster" / "src")}
    command = [sys.executable, "-m", "cloister_devcluster", "status"]
    return (
        subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False).returncode == 0
    )


def bundled() -> Target:
    """Start the bundled cluster if it is down, bring the images into it, and return it."""
    devcluster("up")
    devcluster("images")
    return Target(
        kubectl_path=devcluster("bin", "kubectl", quiet=True),
        helm_path=devcluster("bin", "helm", quiet=True),
        kubeconfig=devcluster("kubeconfig", quiet=True),
        bundled=True,
    )


def current() -> Target:
    """Return the cluster of the current kube context, after asking unless YES=1.

    Raises TargetError when there is none, when kubectl or helm is missing, or on a refusal.
    """
    kubectl, helm = shutil.which("kubectl"), shutil.which("helm")
    if not kubectl or not helm:
        raise TargetError("CLUSTER=current needs kubectl and helm on the PATH")
    target = Target(kubectl, helm, os.environ.get("KUBECONFIG"), bundled=False)
    config = json.loads(target.kubectl("config", "view", "--minify", "-o", "json"))
    context = config.get("current-context") or ""
    if not context:
        raise TargetError("there is no current kube context: run `kubectl config use-context ...`")
    server = config["clusters"][0]["cluster"]["server"]
    print(f"current kube context: {context} ({server})")
    if os.environ.get("YES") != "1":
        question = (
            f"Install Cloister there, with the namespaces {SYSTEM_NAMESPACE} and "
            f"{SANDBOX_NAMESPACE}? [y/N] "
        )
        try:
            answer = input(question)
        except EOFError:
            answer = ""
        if answer.strip().lower() not in ("y", "yes"):
            raise TargetError("nothing was touched (YES=1 skips the question)")
    _bring_images(context)
    return target


def _bring_images(context: str) -> None:
    """Build the images and bring them to a cluster that is not ours.

    kind takes them from the local engine; any other cluster pulls them from REGISTRY. With
    IMAGES=present the cluster has them already.
    """
    if os.environ.get("IMAGES") == "present":
        return
    engine = shutil.which("docker") or shutil.which("podman")
    registry = os.environ.get("REGISTRY")
    if engine is None:
        raise TargetError(
            "building images for this cluster needs docker or podman; "
            "IMAGES=present says that it has them already"
        )
    if not context.startswith("kind-") and not registry:
        raise TargetError(
            "this cluster must pull the images from somewhere: set REGISTRY=host/path, "
            "or IMAGES=present if it has them already"
        )
    devcluster("images", "--engine", engine)
    for image in IMAGES.values():
        if registry:
            remote = in_registry(image)
            subprocess.run([engine, "tag", image, remote], check=True)
            subprocess.run([engine, "push", remote], check=True)
        else:
            name = context.removeprefix("kind-")
            subprocess.run(["kind", "load", "docker-image", image, "--name", name], check=True)


def in_registry(image: str) -> str:
    """The name of one of our images as the cluster pulls it."""
    registry = os.environ.get("REGISTRY")
    return f"{registry}/{image.removeprefix('localhost/cloister/')}" if registry else image


def choose(cluster: str) -> Target:
    """The target for `bundled` or `current`; raises TargetError."""
    return bundled() if cluster == "bundled" else current()
