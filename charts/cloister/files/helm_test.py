"""What `helm test` runs: an Environment of its own, a session of it, one command, and cleaning up.

It runs in a pod of the release's namespace with the client's image, as a worker would. Its settings
are the environment variables TEST_NAMESPACE (a sandbox namespace) and TEST_ENVIRONMENT (the name of
its Environment there). It ends with exit code 0, or with a sentence about what failed.
"""

import os
import sys
import time
from typing import Any

from kubernetes import client, config

import cloister

READY_SECONDS = 120.0
WHERE: dict[str, Any] = {"group": "cloister.dev", "version": "v1alpha1", "plural": "environments"}


class TestFailed(Exception):
    """The installation does not work; the message says what was missing."""


def wait_ready(api: Any, namespace: str, name: str) -> None:
    """Wait until the Environment is Ready; raises TestFailed with its own words."""
    end = time.monotonic() + READY_SECONDS
    while True:
        found = api.get_namespaced_custom_object(namespace=namespace, name=name, **WHERE)
        conditions = (found.get("status") or {}).get("conditions", [])
        said = {each["type"]: each for each in conditions}.get("Ready")
        if said and said["status"] == "True":
            return
        if time.monotonic() > end:
            because = f"{said['reason']}: {said['message']}" if said else "the operator is silent"
            raise TestFailed(
                f"Environment {name} is not Ready after {READY_SECONDS:.0f} s: {because}"
            )
        time.sleep(0.2)


def main() -> None:
    """Raises TestFailed, cloister.CloisterError or kubernetes.client.ApiException."""
    namespace, name = os.environ["TEST_NAMESPACE"], os.environ["TEST_ENVIRONMENT"]
    config.load_incluster_config()
    api: Any = client.CustomObjectsApi()
    body = {
        "apiVersion": "cloister.dev/v1alpha1",
        "kind": "Environment",
        "metadata": {"name": name},
        "spec": {},
    }
    try:
        api.create_namespaced_custom_object(namespace=namespace, body=body, **WHERE)
    except client.ApiException as error:
        # Left by a test that was killed; it is used, and removed below.
        if error.status != 409:
            raise
    try:
        wait_ready(api, namespace, name)
        print(f"Environment {name} in {namespace} is Ready", flush=True)
        with (
            cloister.Client(namespace=namespace) as connected,
            connected.create_session(name) as session,
        ):
            print(f"session {session.name} has pod {session.pod_name}", flush=True)
            answer = session.bash("echo $((6 * 7))").text
        if answer != "42":
            raise TestFailed(f"the command answered {answer!r} instead of 42")
        print("a command ran in it and answered 42", flush=True)
    finally:
        api.delete_namespaced_custom_object(namespace=namespace, name=name, **WHERE)


if __name__ == "__main__":
    try:
        main()
    except (TestFailed, cloister.CloisterError, client.ApiException) as failure:
        sys.exit(f"helm test failed: {failure}")
