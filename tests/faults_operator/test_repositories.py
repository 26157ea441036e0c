"""Git repositories among an Environment's files, as a real API server takes them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from cloister_operator.api.environment import EnvironmentStatus, GitCommit
from faults_operator.control_plane import ControlPlane, control_plane
from support.operator_objects import environment_body

JSON = dict[str, Any]
ENVIRONMENTS = "/apis/cloister.dev/v1alpha1/namespaces/default/environments"
URL = "https://git.example.com/team/project.git"

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """An API server that knows our kinds."""
    async with control_plane(tmp_path_factory.mktemp("plane") / "plane") as made:
        yield made


async def answer(plane: ControlPlane, method: str, path: str, body: JSON) -> tuple[int, JSON]:
    kind = "merge-patch+json" if method == "PATCH" else "json"
    async with plane.admin._session.request(
        method,
        plane.admin._server + path,
        data=json.dumps(body),
        headers={"Content-Type": f"application/{kind}"},
    ) as response:
        return response.status, json.loads(await response.text())


def environment(name: str = "git", **file: Any) -> JSON:
    given = {"path": "/workspace/project", "readOnly": False, "git": {"url": URL}, **file}
    body = environment_body(name, files=[given])
    body["metadata"]["namespace"] = "default"
    return body


@pytest.mark.parametrize(
    ("file", "refused"),
    [
        ({}, ""),
        ({"git": {"url": URL, "ref": "feature/x-1", "secretRef": {"name": "login"}}}, ""),
        ({"git": {"url": "https://git.example.com:8443/a", "ref": "v1.2+3"}}, ""),
        ({"readOnly": True}, "spec.files[0].readOnly"),
        ({"mode": "0644"}, "spec.files[0].mode"),
        ({"path": "/etc/app/x"}, "spec.files[0].path"),
        ({"content": "x"}, "exactly one of"),
        ({"git": {"url": "http://git.example.com/a"}}, "spec.files[0].git.url"),
        ({"git": {"url": "https://me:pw@git.example.com/a"}}, "spec.files[0].git.url"),
        ({"git": {"url": "https://git.example.com/a?b=c"}}, "spec.files[0].git.url"),
        ({"git": {"url": "https://git.example.com/../a"}}, "spec.files[0].git.url"),
        ({"git": {"url": "https://git.example.com/a/%2E%2e/b"}}, "spec.files[0].git.url"),
        ({"git": {"url": URL, "ref": "--upload-pack=x"}}, "spec.files[0].git.ref"),
        ({"git": {"url": URL, "ref": "a..b"}}, "spec.files[0].git.ref"),
    ],
)
async def test_repositories_are_taken_or_refused_by_their_field(
    plane: ControlPlane, file: JSON, refused: str
) -> None:
    status, said = await answer(plane, "POST", f"{ENVIRONMENTS}?dryRun=All", environment(**file))
    assert (status, refused) == (201, "") or (status == 422 and refused in said["message"]), said


async def test_the_status_names_the_commits(plane: ControlPlane) -> None:
    assert (await answer(plane, "POST", ENVIRONMENTS, environment("kept")))[0] == 201
    commit = GitCommit(path="/workspace/project", url=URL, commit="1" * 40)
    body = EnvironmentStatus(git=[commit]).model_dump(mode="json", by_alias=True)
    path = f"{ENVIRONMENTS}/kept/status"
    status, said = await answer(plane, "PATCH", path, {"status": body})
    assert status == 200, said
    assert EnvironmentStatus.model_validate(said["status"]).git == [commit]
