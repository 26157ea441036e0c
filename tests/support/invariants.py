"""What must hold of a cluster with our operator, whatever went wrong: the one list of it.

`Invariants` looks at every write as the API server accepts it; `problems` and `leaks` look at a
state. docs/testing.md says them in words.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from cloister_operator import names
from cloister_operator.api.conditions import parse_time
from cloister_operator.api.session import FirstPod, SessionObject
from cloister_operator.cluster.resources import (
    ENVIRONMENTS,
    NETWORK_POLICIES,
    PODS,
    SECRETS,
    SESSIONS,
    VOLUME_CLAIMS,
)
from support.fake_api import OPERATOR, Change, FakeCluster

JSON = dict[str, Any]
_ENDED = ("Failed", "Terminated")


def problems(cluster: FakeCluster, claimed: Mapping[str, str], namespace: str) -> Iterator[str]:
    """What must never be in a state; `claimed`: session UID by pod UID, as exec servers know it."""
    sessions = {each["metadata"]["uid"] for each in cluster.peek_all(SESSIONS, namespace)}
    running: defaultdict[str, list[str]] = defaultdict(list)
    for each in cluster.peek_all(SESSIONS, namespace):
        status = each.get("status") or {}
        if status.get("phase") == "Running":
            running[status["podUID"]].append(each["metadata"]["name"])
            owner = claimed.get(status["podUID"])
            if owner != each["metadata"]["uid"]:
                yield f"{each['metadata']['name']} runs in a pod that {owner} claimed"
    for pod, shared in running.items():
        if len(shared) > 1:
            yield f"pod {pod} serves {shared}"
    for each in cluster.peek_all(PODS, namespace):
        labels, uid = each["metadata"]["labels"], each["metadata"]["uid"]
        if "deletionTimestamp" in each["metadata"]:
            continue
        of_session = labels[names.STATE_LABEL] == names.STATE_CLAIMED
        if claimed.get(uid) and not of_session:
            yield f"pod {each['metadata']['name']} was claimed and is back in the pool"
        if of_session and labels[names.SESSION_LABEL] not in sessions:
            yield f"pod {each['metadata']['name']} serves nobody"


def leaks(cluster: FakeCluster, namespace: str) -> set[str]:
    """Names of Secrets that nothing present needs."""
    present = cluster.peek_all(PODS, namespace)
    used = {
        volume["secret"]["secretName"]
        for each in present
        for volume in each["spec"]["volumes"]
        if "secret" in volume
    }
    for each in cluster.peek_all(ENVIRONMENTS, namespace):
        found = (each.get("status") or {}).get("recipeHash", "")
        used.add(names.recipe_secret(each["metadata"]["name"], found))
    for each in cluster.peek_all(SESSIONS, namespace):
        used.add(names.credentials_secret(each["metadata"]["name"]))
    return {each["metadata"]["name"] for each in cluster.peek_all(SECRETS, namespace)} - used


class Invariants:
    """Looks at every change of a cluster; what is wrong is in `violations`."""

    def __init__(
        self, cluster: FakeCluster, claimed: Mapping[str, str], probes: Mapping[str, int]
    ) -> None:
        """`claimed`: session UID by pod UID, `probes`: how often each pod tried to reach the
        cluster by its UID; both as the exec servers know it.
        """
        self._cluster = cluster
        self._claimed = claimed
        self._probes = probes
        self._session_of: dict[str, str] = {}
        """By pod UID, the session whose status named it."""
        self._pods_of: defaultdict[str, set[str]] = defaultdict(set)
        """By session UID, the pods that carried its label."""
        self._answered: dict[str, tuple[str, str, str]] = {}
        """By session UID, what its first caller was told: its name, its pod's UID, its start."""
        self._unanswered: set[str] = set()
        """UIDs of pods that did not answer their claim."""
        self._harmed: set[str] = set()
        """UIDs of pods that others than the operator changed the fate of."""
        self._sizes: defaultdict[str, int] = defaultdict(int)
        """By Environment UID, the largest pool it asked for."""
        self._limits: defaultdict[str, list[int | None]] = defaultdict(list)
        """By Environment name, every `maxSessions` that it had."""
        self._in_line: dict[str, set[str]] = {}
        """By UID of a session, those that were in line when it was given its place: who is told so
        later, while its pod is claimed or made, was not known then.
        """
        self.most = 0
        """Sessions that the platform allows in a namespace; 0: any number."""
        self.refills = 0
        """How often a pool may be there once more: each operator that died, or led beside another
        one, may have filled it with pods that nobody else knows of.
        """
        self.violations: list[str] = []
        cluster.listeners.append(self.look)

    def harm(self, pod_uid: str) -> None:
        """Somebody else than the operator ends this pod, or keeps it from starting."""
        self._harmed.add(pod_uid)

    def answered(self, session: SessionObject) -> None:
        """A caller was told that a session runs, be it before or after its status says so."""
        metadata, status = session.metadata, session.status
        uid, pod = metadata.uid, status.pod_uid or ""
        if self._claimed.get(pod) != uid:
            self.violated(f"session {metadata.name} was answered with a pod that does not know it")
        labelled = (each["metadata"] for each in self._cluster.peek_all(PODS, metadata.namespace))
        mine = {each["uid"]: each["labels"].get(names.SESSION_LABEL) for each in labelled}
        if mine.get(pod, uid) != uid:
            self.violated(f"session {metadata.name} was answered with another session's pod")
        told = metadata.name, pod, status.running_since or ""
        if status.restarts == status.recoveries == 0:
            before = self._answered.setdefault(uid, told)
            if before != told:
                self.violated(f"session {metadata.name} was answered with {told} after {before}")

    def unanswered(self, pod_uid: str) -> None:
        """A pod did not answer its claim."""
        self._unanswered.add(pod_uid)

    def gives_place(self, namespace: str, uid: str) -> None:
        """An operator gives a session its place, and begins to claim or to make a pod for it."""
        self._in_line[uid] = self._told_to_wait(namespace)

    def violated(self, message: str) -> None:
        """Note that something is wrong."""
        self.violations.append(message)

    def look(self, change: Change) -> None:
        """A change that the API server accepted."""
        if change.resource == PODS:
            self._pod(change, change.before, change.after)
        elif change.resource == SESSIONS and change.after:
            before, after = change.before or {}, change.after
            self._session(after, before.get("status") or {}, after.get("status") or {})
        elif change.resource == VOLUME_CLAIMS and change.after and not change.before:
            self._admitted(change.namespace, change.after)
        elif change.resource == ENVIRONMENTS and change.after:
            uid, name = change.after["metadata"]["uid"], change.after["metadata"]["name"]
            pool = change.after["spec"].get("pool", {})
            size = max(pool.get("size", 1), pool.get("maxSize") or 0)
            self._sizes[uid] = max(size, self._sizes[uid])
            self._limits[name].append(pool.get("maxSessions"))
        elif change.resource == ENVIRONMENTS and change.before and self.refills:
            # Two operators may each have taken the last place; who of them hands its pod over after
            # this knows of no limit.
            self._limits[change.before["metadata"]["name"]].append(None)

    # --- pods --------------------------------------------------------------------------------

    def _pod(self, change: Change, before: JSON | None, after: JSON | None) -> None:
        if before and after is None:
            if "deletionTimestamp" not in before["metadata"]:
                self._deleted(change, before)
            return
        if after is None:
            return
        labels, uid = after["metadata"]["labels"], after["metadata"]["uid"]
        name, session = after["metadata"]["name"], labels.get(names.SESSION_LABEL)
        if session:
            if not self._pods_of[session]:
                self._in_turn(change.namespace, labels[names.ENVIRONMENT_LABEL], session)
            self._pods_of[session].add(uid)
        if before is None:
            self._made(change, after)
            return
        was = before["metadata"]["labels"]
        if was.get(names.SESSION_LABEL) not in (None, session):
            self.violated(f"pod {name} went from one session to another")
        if was[names.STATE_LABEL] == names.STATE_CLAIMED != labels[names.STATE_LABEL]:
            self.violated(f"pod {name} was claimed and is back in the pool")
        if labels[names.STATE_LABEL] == names.STATE_WARM and not self._probes.get(uid):
            self.violated(f"pod {name} is warm and was never probed")
        if {"deletionTimestamp"} & (after["metadata"].keys() - before["metadata"].keys()):
            self._deleted(change, before)

    def _made(self, change: Change, pod: JSON) -> None:
        name, namespace = pod["metadata"]["name"], change.namespace
        if self._cluster.peek(NETWORK_POLICIES, namespace, names.DENY_POLICY) is None:
            self.violated(f"pod {name} was made before {names.DENY_POLICY}")
        labels, volume = pod["metadata"]["labels"], _volume(pod)
        for each in self._cluster.peek_all(PODS, namespace) if volume else ():
            if _volume(each) == volume and each["metadata"]["uid"] != pod["metadata"]["uid"]:
                self.violated(
                    f"volume {volume} has two pods, {each['metadata']['name']} and {name}"
                )
        if labels[names.STATE_LABEL] == names.STATE_CLAIMED:
            return
        (owner,) = pod["metadata"]["ownerReferences"]
        free = sum(
            1 for each in self._cluster.peek_all(PODS, namespace) if _is_free(each, owner, labels)
        )
        most = self._sizes[owner["uid"]] * (1 + self.refills)
        if free > most:
            self.violated(f"pod {name} is one more than the {most} that its pool may have")

    def _deleted(self, change: Change, pod: JSON) -> None:
        """A claimed pod ends with its session, or when the session has got another one, or when it
        can never start, or when the session never ran in it and is one too many, has its workspace
        elsewhere, or got no answer of it.
        """
        if change.actor != OPERATOR or self._cannot_start(change.namespace, pod):
            return
        full = self._limits.get(pod["metadata"]["labels"][names.ENVIRONMENT_LABEL], [None])
        never_ran = pod["metadata"]["uid"] not in self._session_of
        if never_ran and (self.most or any(each is not None for each in full)):
            return
        if never_ran and pod["metadata"]["uid"] in self._unanswered:
            return
        uid = pod["metadata"]["labels"].get(names.SESSION_LABEL)
        for session in self._cluster.peek_all(SESSIONS, change.namespace) if uid else ():
            status = session.get("status") or {}
            phase, its = status.get("phase", "Pending"), status.get("podUID")
            if never_ran and status.get("workspaceClaim") not in (None, _volume(pod)):
                continue
            # The status of one that waits names the pod that it has lost or given back.
            mine = (its == pod["metadata"]["uid"]) is (phase == "Running")
            if session["metadata"]["uid"] == uid and mine and phase in ("Pending", "Running"):
                name = session["metadata"]["name"]
                self.violated(
                    f"pod {pod['metadata']['name']} was deleted under session {name}, {phase}"
                )

    def _cannot_start(self, namespace: str, pod: JSON) -> bool:
        labels = pod["metadata"]["labels"]
        recipe = names.recipe_secret(labels[names.ENVIRONMENT_LABEL], labels[names.RECIPE_LABEL])
        has_recipe = self._cluster.peek(SECRETS, namespace, recipe) is not None
        return not pod["status"].get("podIP") and not has_recipe

    # --- sessions ----------------------------------------------------------------------------

    def _session(self, session: JSON, before: JSON, after: JSON) -> None:
        name, uid = session["metadata"]["name"], session["metadata"]["uid"]
        was, now = before.get("phase", "Pending"), after.get("phase", "Pending")
        pod = after.get("podUID")
        if was in _ENDED and now != was:
            self.violated(f"session {name} was {was} and is {now}")
        # Two pods can be lost in one second.
        losses = [(each.get("failedAt"), each.get("recoveries")) for each in (before, after)]
        lost = after.get("failedAt") is not None and losses[0] != losses[1]
        if was == "Running" and now == "Pending" and not (lost and after.get("workspaceClaim")):
            self.violated(f"session {name} ran and is Pending")
        if was == now == "Running" and before.get("podUID") != pod:
            self.violated(f"session {name} went from one pod to another")
        if now == "Running" and pod:
            if self._session_of.setdefault(pod, uid) != uid:
                self.violated(f"pod {after['podName']} serves two sessions, one is {name}")
            if self._claimed.get(pod) != uid:
                self.violated(f"session {name} runs in a pod that does not know it")
        if now == "Running" != was:
            self._started(session)
        told = self._answered.get(uid)
        if told and was == "Pending" != now:
            self._kept(told, after)
        for meter in ("runningSeconds", "activeSeconds"):
            if after.get(meter, 0) < before.get(meter, 0):
                self.violated(f"session {name}: {meter} went back")
        wrong = meter_problem(before, after)
        if wrong:
            self.violated(f"session {name}: {wrong}")
        if (lost or now == "Failed" != was) and not self._may_fail(session):
            reason = after.get("reason")
            self.violated(f"session {name} failed ({reason}), and nothing happened to its pod")

    def _kept(self, told: tuple[str, str, str], status: JSON) -> None:
        """The first status that follows from what a caller was told."""
        written = (told[0], status.get("podUID"), status.get("runningSince"))
        if status["phase"] == "Running" and not status.get("restarts") and written != told:
            self.violated(f"session {told[0]} was answered with {told} and is {written}")
        if status["phase"] == "Suspended" and not status.get("workspaceClaim"):
            self.violated(f"session {told[0]} was answered and is Suspended, without its work")

    def _may_fail(self, session: JSON) -> bool:
        """Whether something happened to its pod. An operator that did not make the session cannot
        know whether it ran in the pod that it was made for, when that is gone or on its way out: as
        when it was claimed while its Environment's deletion took it along.
        """
        uid = session["metadata"]["uid"]
        if self._pods_of[uid] & self._harmed:
            return True
        given = session["metadata"].get("annotations", {}).get(names.FIRST_POD)
        first = FirstPod.parse(given) if given else None
        gone = first and not any(
            each["metadata"]["uid"] == first.uid and "deletionTimestamp" not in each["metadata"]
            for each in self._cluster.peek_all(PODS, session["metadata"]["namespace"])
        )
        return bool(gone and self.refills)

    def _started(self, session: JSON) -> None:
        """One more session runs: no more than may, however many operators let them, and in a
        workspace that stays when its pod goes.
        """
        namespace, environment = (
            session["metadata"]["namespace"],
            session["spec"]["environmentName"],
        )
        kept = session["status"].get("workspaceClaim")
        volume = self._cluster.peek(VOLUME_CLAIMS, namespace, kept) if kept else None
        owners = (volume or {}).get("metadata", {}).get("ownerReferences", [])
        if kept and [each["uid"] for each in owners] != [session["metadata"]["uid"]]:
            name = session["metadata"]["name"]
            self.violated(f"session {name} runs, and its workspace {kept} is not its own")
        running = [
            each
            for each in self._cluster.peek_all(SESSIONS, namespace)
            if (each.get("status") or {}).get("phase") == "Running"
            and self._is_alive(namespace, each["status"]["podName"])
        ]
        if 0 < self.most < len(running):
            self.violated(f"{len(running)} sessions run in a namespace that may have {self.most}")
        limits = self._limits[environment]
        if not limits or None in limits:
            return
        mine = [
            each["metadata"]["name"]
            for each in running
            if each["spec"]["environmentName"] == environment
        ]
        most = max(each for each in limits if each is not None)
        if len(mine) > most:
            self.violated(f"{', '.join(mine)} run, and {most} may")

    def _admitted(self, namespace: str, volume: JSON) -> None:
        """Whoever looks from outside sees no place given before there is a volume claim for it."""
        for owner in volume["metadata"].get("ownerReferences", []):
            self._in_line.setdefault(owner["uid"], self._told_to_wait(namespace))

    def _told_to_wait(self, namespace: str) -> set[str]:
        everybody = self._cluster.peek_all(SESSIONS, namespace)
        return {each["metadata"]["uid"] for each in everybody if _waits(each)}

    def _in_turn(self, namespace: str, environment: str, uid: str) -> None:
        """A session gets its first pod: not while those that have waited for longer have no place.

        Who lost a pod keeps its place. Only of an operator that is alone from the start: another
        one cannot know who waits.
        """
        limits = self._limits[environment]
        if self.refills or not limits or None in limits:
            return
        everybody = self._cluster.peek_all(SESSIONS, namespace)
        mine = next((each for each in everybody if each["metadata"]["uid"] == uid), None)
        if mine is None:
            return
        others = [
            each
            for each in everybody
            if each["spec"]["environmentName"] == environment and each is not mine
        ]
        running = [each for each in others if (each.get("status") or {}).get("phase") == "Running"]
        older = [
            each["metadata"]["name"]
            for each in others
            if _waits(each)
            and _made_at(each) < _made_at(mine)
            and each["metadata"]["uid"] in self._in_line.get(uid, {each["metadata"]["uid"]})
        ]
        if older and len(running) + len(older) >= max(each for each in limits if each is not None):
            name = mine["metadata"]["name"]
            self.violated(f"session {name} got a pod before {', '.join(older)}, in line for longer")

    def _is_alive(self, namespace: str, name: str) -> bool:
        pod = self._cluster.peek(PODS, namespace, name)
        return (
            pod is not None
            and "deletionTimestamp" not in pod["metadata"]
            and pod["status"]["phase"] not in ("Failed", "Succeeded")
        )


def meter_problem(before: JSON, after: JSON) -> str | None:
    """A run adds its own length to the meter, once, whoever began it and whoever ended it."""
    since, still = before.get("runningSince"), after.get("runningSince")
    earlier = (each.get("earlierRunningMilliseconds", 0) for each in (before, after))
    added = -next(earlier) + next(earlier)
    if since == still or not since:
        return f"{added} ms were added without a run" if added else None
    if still:
        return f"a run that began at {since} began again at {still}"
    stamps = ("suspendedAt", "endedAt", "failedAt")
    ends = [after[each] for each in stamps if after.get(each) not in (None, before.get(each))]
    if not ends:
        return None
    # The status says the second in which it ended.
    least = parse_time(ends[0]) - parse_time(since)
    if not timedelta() <= timedelta(milliseconds=added + 1) - least <= timedelta(seconds=1.001):
        return f"a run from {since} to {ends[0]} was counted as {added} ms"
    return None


def _waits(session: JSON) -> bool:
    """Whether it stands in line for a place, and was told so."""
    asked = session["spec"].get("state", "Running")
    return asked == "Running" and (session.get("status") or {}).get("reason") == "Queued"


def _made_at(session: JSON) -> str:
    """To the second: of those made in one, the first may have its place when the others come."""
    return str(session["metadata"]["creationTimestamp"])


def _volume(pod: JSON) -> str | None:
    """The name of the claim that a pod mounts."""
    for each in pod["spec"].get("volumes", ()):
        if "persistentVolumeClaim" in each:
            found: str = each["persistentVolumeClaim"]["claimName"]
            return found
    return None


def _is_free(pod: JSON, owner: JSON, labels: JSON) -> bool:
    mine = pod["metadata"]["labels"]
    return (
        mine[names.RECIPE_LABEL] == labels[names.RECIPE_LABEL]
        and mine[names.STATE_LABEL] != names.STATE_CLAIMED
        and "deletionTimestamp" not in pod["metadata"]
        and pod["status"]["phase"] not in ("Failed", "Succeeded")
        and any(each["uid"] == owner["uid"] for each in pod["metadata"]["ownerReferences"])
    )
