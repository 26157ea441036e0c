"""Who the operator is to the API server, and that it stays known for who it is."""

from pathlib import Path

import kopf
import pytest
import yaml

from cloister_operator.cluster import login
from cloister_operator.cluster.api import HttpApi
from cloister_operator.cluster.login import TOKEN_SECONDS, Login


def identity(token: str) -> kopf.ConnectionInfo:
    return kopf.ConnectionInfo(server="https://10.96.0.1:443/", token=token)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_token_that_was_replaced_is_read_again() -> None:
    clock, found = Clock(), [identity("b"), identity("c")]
    made = Login(identity("a"), lambda: found.pop(0), clock)
    assert made.server == "https://10.96.0.1:443"
    clock.now += TOKEN_SECONDS - 1
    assert await made.headers() == {"Authorization": "Bearer a"}
    clock.now += 1
    assert await made.headers() == {"Authorization": "Bearer b"}
    assert await made.headers() == {"Authorization": "Bearer b"}
    clock.now += TOKEN_SECONDS
    assert await made.headers() == {"Authorization": "Bearer c"}


@pytest.mark.parametrize("error", [OSError("gone"), kopf.LoginError("no context"), None])
async def test_while_it_cannot_be_read_the_last_one_is_used(error: Exception | None) -> None:
    clock = Clock()

    def find() -> kopf.ConnectionInfo | None:
        if error:
            raise error
        return None

    made = Login(identity("a"), find, clock)
    clock.now += TOKEN_SECONDS
    assert await made.headers() == {"Authorization": "Bearer a"}


async def test_who_is_nobody_is_told_so() -> None:
    with pytest.raises(kopf.LoginError, match="neither a ServiceAccount's token nor a kubeconfig"):
        await HttpApi.connect(lambda: None)


def test_outside_a_cluster_the_kubeconfig_says_who(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:6443"}}],
                "users": [{"name": "u", "user": {"token": "secret"}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    found = login.find()
    assert found is not None
    assert (found.server, found.trust_env) == ("https://127.0.0.1:6443", False)
    assert found.as_http_headers() == {"Authorization": "Bearer secret"}


def test_in_a_cluster_the_api_server_is_dialed_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    account = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t")
    monkeypatch.setattr(kopf, "login_with_service_account", lambda **_: account)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = login.find()
    assert found is not None
    assert (found.server, found.token) == ("https://[fd00::1]:443", "t")
