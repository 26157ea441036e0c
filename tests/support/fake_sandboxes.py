"""Exec servers that exist in name only: what the pods of a FakeCluster answer."""

import asyncio
import json
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from cloister_operator import names
from cloister_operator.cluster.resources import PODS
from cloister_operator.errors import ConflictError, TransientError
from cloister_operator.sandboxes import (
    Activity,
    ClaimPayload,
    PodAddress,
    SandboxFailed,
    SandboxInfo,
    SandboxState,
)
from support.fake_api import FakeCluster
from support.operator_objects import NAMESPACE

JSON = dict[str, Any]


class FakeSandboxes:
    """controller.context.Dialer: what the exec servers of a FakeCluster answer."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.answering = asyncio.Event()
        """Cleared: no exec server is up yet."""
        self.answering.set()
        self.longest_pause = 0.005
        """Seconds between two looks at a pod that is not up yet."""
        self.setup_problem = ""
        """What the setup script says when it fails."""
        self.has_setup = False
        """Whether there is a script that waits until the operator lets it run."""
        self.prepared: dict[str, int] = {}
        """How often a pod had been probed when that was, by UID."""
        self.reachable: list[str] = []
        """What sandboxes reach in spite of the policies."""
        self.gateway = "10.96.0.7:3128"
        """What those with the network `gateway` reach by the policies."""
        self.by_name = "10.96.0.7:443"
        """What they reach, too, where the platform has it."""
        self.by_name_closed = False
        """Whether the policy engine has yet to open that way."""
        self.way_closed = False
        """Whether the policy engine has yet to open their way."""
        self.uid_map = "0 100000 65536"
        """Which users outside a pod those inside are, as the kernel says it."""
        self.package_sources_said: list[tuple[str, list[str]]] = []
        """Where the package managers of every image get their packages."""
        self.refusing: set[str] = set()
        """UIDs of pods that refuse every claim."""
        self.claimed: dict[str, str] = {}
        """Session UID by pod UID: it is never taken back."""
        self.payloads: dict[str, ClaimPayload] = {}
        """What each session's pod was given."""
        self.idle: dict[str, timedelta] = {}
        """How long nothing ran, by session UID."""
        self.active: dict[str, timedelta] = {}
        """How long tools ran in its present pod, by session UID; 7 s unless set."""
        self.drained: list[str] = []
        """UIDs of sessions whose pods were drained."""
        self.busy: set[str] = set()
        """UIDs of sessions in which a tool runs."""
        self.trusted: dict[str, bytes] = {}
        """By pod UID, the CAs that it was told to trust."""
        self.asked: list[str] = []
        """UIDs of sessions whose pods were asked for their activity."""
        self.delivered: dict[str, dict[str, bytes]] = {}
        """By pod UID and directory, the archives of files that it was given."""
        self.probes: defaultdict[str, int] = defaultdict(int)
        """By pod UID, how often it was made to probe."""
        self.tried: dict[str, list[str]] = {}
        """By pod UID, what it was asked to reach last."""

    def _up(self, pod: PodAddress) -> bool:
        found = self._cluster.peek(PODS, NAMESPACE, pod.name)
        return (
            found is not None
            and found["metadata"]["uid"] == pod.uid
            and found["status"].get("podIP") == pod.ip
            and found["status"]["phase"] == "Running"
        )

    def _check(self, pod: PodAddress, session_uid: str = "") -> None:
        if not self._up(pod) or not self.answering.is_set():
            raise TransientError(f"pod {pod.name} does not answer")
        owner = self.claimed.get(pod.uid, "")
        if owner and owner != session_uid:
            raise TransientError(f"pod {pod.name} has another name")

    async def wait_warm(
        self, pod: PodAddress, deadline: float, session_uid: str = ""
    ) -> SandboxInfo:
        pause = 0.001
        while asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 1.3, self.longest_pause)
            try:
                self._check(pod, session_uid)
            except TransientError:
                continue
            if self.setup_problem:
                raise SandboxFailed("SetupFailed", self.setup_problem)
            awaits = self._awaits(pod)
            if awaits:
                return SandboxInfo(
                    SandboxState.PREPARING, "0", 1, "boot", "", "", self.uid_map, awaits
                )
            if self.has_setup and pod.uid not in self.prepared:
                return SandboxInfo(
                    SandboxState.PREPARING,
                    "0",
                    1,
                    "boot",
                    "",
                    "",
                    self.uid_map,
                    awaits_proof=True,
                )
            owner = self.claimed.get(pod.uid, "")
            state = SandboxState.CLAIMED if owner else SandboxState.WARM
            return SandboxInfo(state, "0", 1, "boot", owner, "", self.uid_map)
        raise TransientError(f"pod {pod.name} is not warm")

    async def prepare(self, pod: PodAddress) -> None:
        await asyncio.sleep(0)
        self._check(pod)
        self.prepared[pod.uid] = self.probes[pod.uid]

    def _awaits(self, pod: PodAddress) -> tuple[str, ...]:
        found = self._cluster.get(PODS, NAMESPACE, pod.name)
        trees = (found["metadata"].get("annotations") or {}).get(names.GIT_TREES, "[]")
        brought = self.delivered.get(pod.uid, {})
        return tuple(each["path"] for each in json.loads(trees) if each["path"] not in brought)

    async def probe(self, pod: PodAddress, targets: list[str]) -> list[str]:
        await asyncio.sleep(0)
        self._check(pod)
        self.probes[pod.uid] += 1
        self.tried[pod.uid] = targets
        reachable = set(self.reachable)
        if self._needs_gateway(pod) and not self.way_closed:
            reachable |= {self.gateway, *([] if self.by_name_closed else [self.by_name])}
        return [each for each in targets if each in reachable]

    def _needs_gateway(self, pod: PodAddress) -> bool:
        found = self._cluster.get(PODS, NAMESPACE, pod.name)
        return bool(found["metadata"]["labels"].get(names.NETWORK_LABEL) == names.NETWORK_GATEWAY)

    async def deliver(self, pod: PodAddress, path: str, archive: Path) -> None:
        self._check(pod)
        self.delivered.setdefault(pod.uid, {})[path] = await asyncio.to_thread(archive.read_bytes)

    async def package_sources(self, pod: PodAddress) -> list[tuple[str, list[str]]]:
        await asyncio.sleep(0)
        self._check(pod)
        return self.package_sources_said

    async def claim(self, pod: PodAddress, claim: ClaimPayload) -> bool:
        await asyncio.sleep(0)
        if not self._up(pod):
            raise TransientError(f"pod {pod.name} does not answer")
        if pod.uid in self.refusing:
            raise ConflictError("claimed by another session")
        replayed = pod.uid in self.claimed
        if self.claimed.setdefault(pod.uid, claim.session_uid) != claim.session_uid:
            raise ConflictError("claimed by another session")
        self.payloads[claim.session_uid] = claim
        await asyncio.sleep(0)
        return replayed

    async def activity(self, pod: PodAddress, session_uid: str) -> Activity:
        await asyncio.sleep(0)
        self._check(pod, session_uid)
        self.asked.append(session_uid)
        idle = self.idle.get(session_uid, timedelta())
        active = self.active.get(session_uid, timedelta(seconds=7))
        return Activity(idle, active, int(session_uid in self.busy))

    async def drain(self, pod: PodAddress, session_uid: str, grace: timedelta) -> None:
        await asyncio.sleep(0)
        self._check(pod, session_uid)
        self.drained.append(session_uid)
        self.busy.discard(session_uid)

    async def trust(self, pod: PodAddress, session_uid: str, ca_pem: bytes) -> None:
        await asyncio.sleep(0)
        if not self._up(pod) or not self.answering.is_set():
            raise TransientError(f"pod {pod.name} does not answer")
        self.trusted[pod.uid] = ca_pem

    def connected(self, pod_uid: str) -> bool:
        """Whether the operator has called it: of many pods some are, some are not."""
        return self.probes[pod_uid] > 0 and pod_uid[-1] in "01234567"

    def forget(self, pod_uid: str) -> None:
        pass
