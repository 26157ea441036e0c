"""From nothing to an agent's tools in an isolated pod, with every step shown.

What the demo applies is examples/01-first-session; what it does with it, a worker would do.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator

import grpc

import cloister
import target as targets
from cloister_api.exec.v1 import exec_pb2, exec_pb2_grpc
from deploy import deploy
from target import SANDBOX_NAMESPACE, SYSTEM_NAMESPACE, Target, TargetError

STEPS = 6
EXAMPLE = "examples/01-first-session/environment.yaml"
ENVIRONMENT = "first-session"


class Steps:
    """Numbers the steps and times them."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._number = 0

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        self._number += 1
        began = time.monotonic()
        print(f"\n[{self._number}/{STEPS}] {what}", flush=True)
        yield
        print(f"      done in {time.monotonic() - began:.1f} s", flush=True)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started


def say(text: str) -> None:
    """Show output, indented below its step."""
    for line in text.rstrip().splitlines():
        print(f"      {line}")


def shown(target: Target, *args: str) -> None:
    """Run kubectl and show the command with what it prints."""
    say("$ kubectl " + " ".join(args))
    say(target.kubectl(*args))


def must(condition: bool, claim: str) -> None:
    """Show a claim that was checked; raises TargetError when it does not hold."""
    if not condition:
        raise TargetError(f"this should hold, and does not: {claim}")
    say(f"ok: {claim}")


def run_tools(session: cloister.Session) -> None:
    """What an agent does all day."""

    def bash(command: str) -> str:
        say(f"bash> {command}")
        result = session.bash(command)
        say(result.text)
        return result.text

    bash("python3 -c 'print(6*7)'")
    bash("cd /tmp && export TOPIC=cloisters")
    bash("echo $PWD $TOPIC   # the shell remembers")
    say("write> /workspace/notes.md")
    say(session.write("/workspace/notes.md", "# Notes\nA cloister is a courtyrad.\n").text)
    say("edit> courtyrad -> courtyard")
    say(session.edit("/workspace/notes.md", "courtyrad", "courtyard").text)
    say("grep> courtyard")
    say(session.grep("courtyard").text)
    say("read> /workspace/README (a file of the Environment)")
    say(session.read("/workspace/README").text)


def show_isolation(target: Target, client: cloister.Client, session: cloister.Session) -> None:
    """Try what must not work."""
    api = target.kubectl(
        *("get", "service", "kubernetes", "-n", "default", "-o", "jsonpath={.spec.clusterIP}")
    )
    blocked = session.bash(f"timeout 3 bash -c 'exec 3<>/dev/tcp/{api}/443' 2>&1")
    must(blocked.is_error, "the sandbox cannot reach the cluster's API server")
    public = session.bash("timeout 3 bash -c 'exec 3<>/dev/tcp/1.1.1.1/443' 2>&1")
    must(public.is_error, "nor the internet: this Environment allows nothing")
    token = session.bash("ls /var/run/secrets/kubernetes.io 2>&1")
    must(token.is_error, "there is no service-account token in the pod")
    identity = session.bash("id -un; cat /proc/self/uid_map").text.split()
    must(identity[0] == "agent", "tools do not run as root")
    if target.bundled:
        must(identity[2] != "0", f"and its root would be the host's user {identity[2]}")
    with client.create_session(ENVIRONMENT) as other:
        listing = other.bash("ls -A /workspace").text
        must("notes.md" not in listing, "a second session sees nothing of the first one's files")
        own = session.credentials
        foreign = other.credentials
        with client.reach(session) as address:
            pair = (own.private_key_pem, own.certificate_pem)
            must(
                not refused(address, session, pair, own.ca_pem),
                "the session's own certificate is accepted by its pod",
            )
            must(
                refused(address, session, None, own.ca_pem),
                "a caller without a certificate is refused",
            )
            must(
                refused(
                    address, session, (foreign.private_key_pem, foreign.certificate_pem), own.ca_pem
                ),
                "and so is the second session's certificate on the first one's pod",
            )


def refused(
    address: str, session: cloister.Session, pair: tuple[bytes, bytes] | None, ca: bytes
) -> bool:
    """Whether the exec server turns away a caller with this key and certificate."""
    key, certificate = pair or (None, None)
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = [("grpc.ssl_target_name_override", session.server_name)]
    with grpc.secure_channel(address, credentials, options) as channel:
        request = exec_pb2.CallRequest(request_id="intruder", tool="bash")
        request.input.update({"command": "echo in"})
        try:
            list(exec_pb2_grpc.ToolsStub(channel).Call(request, timeout=10))
        except grpc.RpcError as error:
            expected = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE)
            return error.code() in expected
    return False


def demo(cluster: str) -> None:
    steps = Steps()
    with steps.step("A Kubernetes cluster, with Cloister's images on it"):
        target = targets.choose(cluster)
    with steps.step("Install Cloister with helm"):
        deploy(target)
        shown(target, "get", "pods", "-n", SYSTEM_NAMESPACE)
    with steps.step(f"Apply an Environment ({EXAMPLE}) and wait until its pool is warm"):
        target.kubectl("apply", "-n", SANDBOX_NAMESPACE, "-f", str(targets.ROOT / EXAMPLE))
        target.kubectl(
            *("wait", f"environment/{ENVIRONMENT}", "-n", SANDBOX_NAMESPACE),
            *("--for=condition=Ready", "--timeout=180s"),
        )
        shown(target, "get", "environments", "-n", SANDBOX_NAMESPACE)
    if target.kubeconfig:
        client = cloister.Client(namespace=SANDBOX_NAMESPACE, kubeconfig=target.kubeconfig)
    else:
        client = cloister.Client(namespace=SANDBOX_NAMESPACE)
    with client:
        with steps.step("Claim a session and run tools in it, over mutually authenticated gRPC"):
            began = time.monotonic()
            session = client.create_session(ENVIRONMENT)
            took = (time.monotonic() - began) * 1000
            say(f"session {session.name} has pod {session.pod_name}, after {took:.0f} ms;")
            say("most of it went into the first connection from outside the cluster")
            run_tools(session)
        with steps.step("Try what must not work"):
            show_isolation(target, client, session)
        with steps.step("End the session: its pod goes, the pool stays warm"):
            shown(target, "get", "sessions", "-n", SANDBOX_NAMESPACE)
            session.close()
            target.kubectl(
                *("wait", f"pod/{session.pod_name}", "-n", SANDBOX_NAMESPACE),
                *("--for=delete", "--timeout=60s"),
            )
            shown(target, "get", "pods", "-n", SANDBOX_NAMESPACE, "-L", "cloister.dev/state")
    print_next(target, steps.elapsed)


def print_next(target: Target, elapsed: float) -> None:
    """Say how to go on."""
    print(f"\nEverything above ran on a real cluster, in {elapsed:.0f} s. To go on:")
    if target.kubeconfig:
        print(f"  export KUBECONFIG={target.kubeconfig}")
    print(f"  {target.kubectl_path} get environments,sessions -n {SANDBOX_NAMESPACE}")
    print(f"  .venv/bin/cloister session create {ENVIRONMENT} --name mine")
    print("  .venv/bin/cloister exec mine -- 'uname -a; ls -la'")
    if target.bundled:
        print("  make cluster-down    # stops the bundled cluster and removes everything of it")
    else:
        print(f"  {target.helm_path} uninstall cloister -n {SYSTEM_NAMESPACE}")
    print("demo: ok")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", choices=["bundled", "current"], default="bundled")
    try:
        demo(parser.parse_args().cluster)
    except (TargetError, cloister.CloisterError) as error:
        print(f"\ndemo: failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
