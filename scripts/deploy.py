"""Install Cloister on a cluster with helm, or upgrade it."""

import argparse
import sys
from collections.abc import Mapping

import target as targets
from target import IMAGES, ROOT, SANDBOX_NAMESPACE, SYSTEM_NAMESPACE, Target, TargetError

# The bundled cluster has its RuntimeClass. Its handler refuses pods with a user namespace.
GVISOR = {
    "sandbox.allowedRuntimeClasses[0].name": "gvisor",
    "sandbox.allowedRuntimeClasses[0].userNamespaces": "false",
}

# The tests try all that Environments may say; a platform lists what it means.
ALLOWED = {
    f"sandbox.allowed{what}[0]": "*"
    for what in ("Tolerations", "PriorityClasses", "ExtendedResources")
}


def deploy(target: Target, extra: Mapping[str, str] | None = None) -> None:
    """Install or upgrade the release and wait until the operator is ready.

    `extra`: more of the chart's values. Raises TargetError with helm's or kubectl's words.
    """
    existed = "cloister" in target.helm("list", "-n", SYSTEM_NAMESPACE, "-q").split()
    operator, tag = targets.in_registry(IMAGES["operator"]).rsplit(":", 1)
    client, _ = targets.in_registry(IMAGES["client"]).rsplit(":", 1)
    gateway, _ = targets.in_registry(IMAGES["egress-gateway"]).rsplit(":", 1)
    settings = {
        "image.repository": operator,
        "image.tag": tag,
        "tests.image.repository": client,
        "tests.image.tag": tag,
        "egress.gateway.image.repository": gateway,
        "egress.gateway.image.tag": tag,
        "sandbox.image": targets.in_registry(IMAGES["sandbox"]),
        "sandboxNamespaces[0].name": SANDBOX_NAMESPACE,
        "sandboxNamespaces[0].create": "true",
        **ALLOWED,
        **(GVISOR if target.bundled else {}),
        **(extra or {}),
    }
    pairs = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    chart = str(ROOT / "charts" / "cloister")
    target.helm(
        *("upgrade", "--install", "cloister", chart, "-n", SYSTEM_NAMESPACE),
        *("--create-namespace", "--wait", "--timeout", "3m", *pairs),
    )
    deployments = [
        f"deployment/{each}" for each in ("cloister-operator", "cloister-egress-gateway")
    ]
    if existed:
        # The tag of a development image does not change with its content.
        target.kubectl("rollout", "restart", *deployments, "-n", SYSTEM_NAMESPACE)
    for each in deployments:
        target.kubectl("rollout", "status", each, "-n", SYSTEM_NAMESPACE, "--timeout=3m")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", choices=["bundled", "current"], default="bundled")
    arguments = parser.parse_args()
    try:
        target = targets.choose(arguments.cluster)
        deploy(target)
    except TargetError as error:
        print(f"deploy: {error}", file=sys.stderr)
        return 1
    print(f"Cloister is installed in {SYSTEM_NAMESPACE}; sandboxes live in {SANDBOX_NAMESPACE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
