"""The API server in memory answers as the real one does, for all that the operator asks."""

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from cloister_operator import names
from cloister_operator.cluster.api import Api, HttpApi
from cloister_operator.cluster.resources import (
    CONFIG_MAPS,
    NETWORK_POLICIES,
    SESSIONS,
    Resource,
)
from cloister_operator.errors import OperatorError
from support.cluster import SANDBOXES
from support.fake_api import Connection, FakeCluster

JSON = dict[str, Any]
A_WRONG_UID = "00000000-0000-4000-8000-000000000000"


class Script:
    """Runs calls and notes what became of each."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name
        self.outcomes: list[tuple[str, str]] = []

    async def step(self, what: str, call: Awaitable[Any]) -> JSON:
        """Make a call; its outcome is `ok` or the class of its error."""
        try:
            made = await call
        except OperatorError as error:
            self.outcomes.append((what, type(error).__name__))
            return {}
        self.outcomes.append((what, "ok"))
        found: JSON = made or {}
        return found

    def note(self, what: str, fact: object) -> None:
        """Something seen in an answer."""
        self.outcomes.append((what, str(fact)))


def body(name: str) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"test": name, f"{names.GROUP}/state": "warm"}},
        "data": {"k": "v"},
    }


def session(name: str) -> JSON:
    """Of an Environment that does not exist: the operator lets it wait."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.SESSION_KIND,
        "metadata": {"name": name},
        "spec": {"environmentName": f"no-{name}"},
    }


def version(obj: JSON) -> int:
    return int(obj["metadata"]["resourceVersion"])


async def objects(script: Script) -> None:
    """Creation, reading, deletion with preconditions."""
    api, name = script.api, script.name

    async def on(resource: Resource, verb: Callable[..., Awaitable[Any]], *args: Any) -> JSON:
        return await script.step(f"{verb.__name__} {resource.plural}", verb(resource, *args))

    await on(CONFIG_MAPS, api.get, SANDBOXES, name)
    await on(CONFIG_MAPS, api.delete, SANDBOXES, name)
    await on(CONFIG_MAPS, api.create, "no-such-namespace", body(name))
    made = await on(CONFIG_MAPS, api.create, SANDBOXES, body(name))
    uid = made["metadata"]["uid"]
    await on(CONFIG_MAPS, api.create, SANDBOXES, body(name))
    await on(CONFIG_MAPS, api.delete, SANDBOXES, name, A_WRONG_UID)
    await on(CONFIG_MAPS, api.delete, SANDBOXES, name, uid, "1")
    found, _ = await api.list(CONFIG_MAPS, SANDBOXES, f"test={name}")
    script.note("listed", [each["metadata"]["name"] == name for each in found])
    found, _ = await api.list(CONFIG_MAPS, SANDBOXES, f"test={name},other=x")
    script.note("listed by two labels", len(found))
    await on(CONFIG_MAPS, api.delete, SANDBOXES, name, uid, str(version(made)))
    await on(CONFIG_MAPS, api.delete, SANDBOXES, name, uid)


async def patches(script: Script) -> None:
    """JSON-Patch: the claim's operations, and those that do not apply."""
    api, name = script.api, script.name
    made = await api.create(CONFIG_MAPS, SANDBOXES, body(name))
    state = f"/metadata/labels/{names.GROUP}~1state"
    uid = {"op": "test", "path": "/metadata/uid", "value": made["metadata"]["uid"]}
    claim = [
        uid,
        {"op": "test", "path": state, "value": "warm"},
        {"op": "replace", "path": state, "value": "claimed"},
        {"op": "add", "path": f"/metadata/labels/{names.GROUP}~1session", "value": "u"},
    ]

    async def patch(what: str, *operations: JSON) -> JSON:
        return await script.step(what, api.json_patch(CONFIG_MAPS, SANDBOXES, name, operations))

    await patch("another uid", uid | {"value": A_WRONG_UID})
    await patch("replaced and missing", uid, {"op": "replace", "path": "/data/x", "value": "y"})
    await patch("tested and missing", uid, {"op": "test", "path": "/data/x", "value": "y"})
    claimed = await patch("the claim", *claim)
    script.note("newer", version(claimed) > version(made))
    script.note("labels", sorted(claimed["metadata"]["labels"].values())[:-1] == ["claimed", name])
    await patch("the claim once more", *claim)
    same = await patch("nothing new", uid, {"op": "replace", "path": "/data/k", "value": "v"})
    script.note("same version", version(same) == version(claimed))
    gone = [uid, {"op": "remove", "path": "/data/k"}]
    await patch("removed", *gone)
    await patch("removed once more", *gone)
    await script.step("of nothing", api.json_patch(CONFIG_MAPS, SANDBOXES, f"{name}-x", [uid]))
    await api.delete(CONFIG_MAPS, SANDBOXES, name)


async def statuses(script: Script) -> None:
    """The status subresource, with a precondition."""
    api, name = script.api, script.name
    made = await script.step("created", api.create(SESSIONS, SANDBOXES, session(name)))
    status = {"phase": "Failed", "reason": "Testing", "endedAt": "2099-01-01T00:00:00Z"}
    stale = api.patch_status(SESSIONS, SANDBOXES, name, status, "1")
    await script.step("of an old version", stale)
    ended = await script.step("written", api.patch_status(SESSIONS, SANDBOXES, name, status))
    script.note("phase", ended["status"]["phase"])
    script.note("generation", ended["metadata"]["generation"] == made["metadata"]["generation"])
    less = await api.patch_status(SESSIONS, SANDBOXES, name, {"reason": None})
    script.note("removed", "reason" not in less["status"])
    script.note("kept", less["status"]["endedAt"])
    missing = api.patch_status(SESSIONS, SANDBOXES, f"{name}-x", status)
    await script.step("of nothing", missing)
    await script.step("deleted", api.delete(SESSIONS, SANDBOXES, name))


async def applied(script: Script) -> None:
    """Server-side apply, made and merged."""
    api, name = script.api, script.name
    policy: JSON = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": {"test": name}},
        "spec": {"podSelector": {"matchLabels": {"test": name}}, "policyTypes": ["Ingress"]},
    }
    made = await script.step("made", api.apply(NETWORK_POLICIES, SANDBOXES, policy))
    same = await script.step("again", api.apply(NETWORK_POLICIES, SANDBOXES, policy))
    script.note("same version", version(same) == version(made))
    policy["spec"]["policyTypes"] = ["Egress"]
    changed = await script.step("changed", api.apply(NETWORK_POLICIES, SANDBOXES, policy))
    script.note("types", changed["spec"]["policyTypes"])
    script.note("generation", changed["metadata"]["generation"])
    await api.delete(NETWORK_POLICIES, SANDBOXES, name)


async def watched(script: Script) -> None:
    """A watch sees what happens after its version; a label that goes is a deletion."""
    api, name = script.api, script.name
    _, begin = await api.list(CONFIG_MAPS, SANDBOXES, f"test={name}")
    made = await api.create(CONFIG_MAPS, SANDBOXES, body(name))
    label = {"op": "replace", "path": "/metadata/labels/test", "value": "other"}
    data = {"op": "add", "path": "/data/more", "value": "x"}
    await api.json_patch(CONFIG_MAPS, SANDBOXES, name, [data])
    last = await api.json_patch(CONFIG_MAPS, SANDBOXES, name, [label])
    await api.delete(CONFIG_MAPS, SANDBOXES, name)
    seen = []
    async for kind, obj in api.watch(CONFIG_MAPS, SANDBOXES, f"test={name}", begin):
        if kind != "BOOKMARK":
            seen.append((kind, version(obj) == version(last), obj["metadata"]["uid"]))
        if kind == "DELETED":
            break
    script.note("events", [(kind, at_last) for kind, at_last, _ in seen])
    script.note("one object", {uid for _, _, uid in seen} == {made["metadata"]["uid"]})


async def run(api: Api, name: str) -> list[tuple[str, str]]:
    script = Script(api, name)
    for part in (objects, patches, statuses, applied, watched):
        await part(script)
    return script.outcomes


async def test_the_fake_answers_as_the_api_server_does() -> None:
    name = f"t-{secrets.token_hex(4)}"
    fake = FakeCluster(namespaces={SANDBOXES: {}})
    expected = await run(Connection(fake), name)
    real = await HttpApi.connect()
    try:
        found = await run(real, name)
    finally:
        await real.close()
    assert expected == found
