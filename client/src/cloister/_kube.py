"""The Kubernetes API, as far as a client of Cloister needs it.

Configuration and authentication are those of the official client. Its calls are not used: they
import hundreds of models, which takes longer than everything else that `cloister` does. This module
is imported at the first connection, so that what needs no cluster does not wait for it.
"""

import asyncio
import contextlib
import json
import os
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from kubernetes.aio import client as k8s
from kubernetes.aio import config as k8s_config

from ._errors import ConfigurationError, KubernetesError
from ._models import EnvironmentInfo

GROUP, VERSION = "cloister.dev", "v1alpha1"
CONFIG_MAP = "cloister-client-config"
WORKER_ACCOUNT = "cloister-worker"
OPERATOR_LABELS = "app.kubernetes.io/name=cloister,app.kubernetes.io/component=operator"
SANDBOX_CONTAINER = "sandbox"
_TOKEN_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
_TIMEOUT = 30.0
# A followed log ends with its pod; this is only longer than any pod lives.
_FOLLOW_SECONDS = 30 * 86_400.0
_HEARTBEAT = 30.0
# A kubeconfig may name a program that hands out tokens; it is asked again this often.
_RELOAD_SECONDS = 60.0
# A token of ours is replaced this long before it expires.
_TOKEN_MARGIN = 120.0


class Kube:
    """A connection to the cluster's API server."""

    def __init__(self, configuration: k8s.Configuration, *, in_cluster: bool) -> None:
        self.in_cluster = in_cluster
        self._configuration = configuration
        # Reading the system's authorities takes longer than a call; without TLS none is asked.
        secured = not configuration.host.startswith("http:")
        self._tls = k8s.ApiClient(configuration).rest_client.ssl_context if secured else True
        self._session: aiohttp.ClientSession | None = None
        self._issued: dict[str, tuple[str, float]] = {}

    @classmethod
    async def load(cls, kubeconfig: str | None, context: str | None) -> "Kube":
        """Connect by the standard configuration.

        kubeconfig: path of a kubeconfig; None is $KUBECONFIG, the service account inside a pod, or
        ~/.kube/config, in this order. context: name of a context in it; None is the current one.
        Raises ConfigurationError.
        """
        path = kubeconfig or os.environ.get("KUBECONFIG")
        configuration = k8s.Configuration()
        in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and os.access(_TOKEN_FILE, os.R_OK)
        try:
            if path is None and context is None and in_pod:
                k8s_config.load_incluster_config(client_configuration=configuration)
                return cls(configuration, in_cluster=True)
            loader = await k8s_config.load_kube_config(
                config_file=_existing(path or "~/.kube/config"),
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
        except (k8s_config.ConfigException, OSError, yaml.YAMLError) as error:
            reason = str(error).removeprefix("Invalid kube-config file. ")
            raise ConfigurationError(f"no usable Kubernetes configuration: {reason}") from None
        loaded = time.monotonic()

        async def refresh(target: k8s.Configuration) -> None:
            nonlocal loaded
            if time.monotonic() - loaded > _RELOAD_SECONDS:
                loaded = time.monotonic()
                await loader.load_and_set(target)

        configuration.refresh_api_key_hook = refresh  # type: ignore[assignment]
        return cls(configuration, in_cluster=False)

    async def client_config(self, namespace: str) -> Mapping[str, str]:
        """What the operator publishes for clients; raises ConfigurationError, KubernetesError."""
        path = _path("/api/v1/namespaces", namespace, "configmaps", CONFIG_MAP)
        try:
            found = await self._call(f"read ConfigMap {namespace}/{CONFIG_MAP}", "GET", path)
        except KubernetesError as error:
            if error.status == 404:
                raise ConfigurationError(
                    f"Cloister is not installed in namespace {namespace}: "
                    f"there is no ConfigMap {CONFIG_MAP}"
                ) from None
            raise
        data: Mapping[str, str] = found.get("data") or {}
        missing = [
            key for key in ("ca.crt", "sessionsAddress", "sessionsServerName") if not data.get(key)
        ]
        if missing:
            raise ConfigurationError(
                f"ConfigMap {namespace}/{CONFIG_MAP} has no {', '.join(missing)} yet"
            )
        return data

    async def token(self, namespace: str) -> str:
        """A bearer token that says who the caller is.

        The configuration's own; where that has none (client certificates), one of the namespace's
        service account for workers. Raises ConfigurationError where there is none,
        KubernetesError.
        """
        own = await self._configuration.get_api_key_with_prefix("BearerToken")
        if own:
            return str(own).split(None, 1)[-1]
        token, until = self._issued.get(namespace, ("", 0.0))
        if time.time() < until - _TOKEN_MARGIN:
            return token
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": 3600},
        }
        account = f"{namespace}/{WORKER_ACCOUNT}"
        path = _path("/api/v1/namespaces", namespace, "serviceaccounts", WORKER_ACCOUNT, "token")
        try:
            answer = await self._call(
                f"get a token of service account {account}", "POST", path, body=request
            )
        except KubernetesError as error:
            if error.status == 404:
                raise ConfigurationError(
                    f"namespace {namespace} does not exist or is not set up for sandboxes: "
                    f"there is no service account {account}"
                ) from None
            raise
        issued = answer["status"]
        expires = datetime.fromisoformat(issued["expirationTimestamp"])
        self._issued[namespace] = (issued["token"], expires.timestamp())
        return str(issued["token"])

    def forget_token(self, namespace: str) -> None:
        """Ask for a new token next time."""
        self._issued.pop(namespace, None)

    async def operator_pod(self, namespace: str) -> str:
        """Name of a pod of the operator that is ready; raises ConfigurationError."""
        pods = await self._call(
            f"list pods in {namespace}",
            "GET",
            _path("/api/v1/namespaces", namespace, "pods"),
            query={"labelSelector": OPERATOR_LABELS},
        )
        for pod in pods.get("items") or []:
            conditions = pod.get("status", {}).get("conditions") or []
            if "deletionTimestamp" not in pod["metadata"] and any(
                each["type"] == "Ready" and each["status"] == "True" for each in conditions
            ):
                return str(pod["metadata"]["name"])
        raise ConfigurationError(f"no pod of Cloister's operator is ready in namespace {namespace}")

    async def environments(self, namespace: str) -> list[EnvironmentInfo]:
        """The Environments of a namespace, by name; raises ConfigurationError, KubernetesError."""
        path = _path(f"/apis/{GROUP}/{VERSION}/namespaces", namespace, "environments")
        try:
            found = await self._call(f"list environments in {namespace}", "GET", path)
        except KubernetesError as error:
            # A namespace that does not exist has an empty list; only an unknown kind has none.
            if error.status == 404:
                raise ConfigurationError(
                    f"Cloister is not installed in this cluster: it knows no {GROUP}/{VERSION}"
                ) from None
            raise
        items = [EnvironmentInfo.from_object(each) for each in found.get("items") or []]
        return sorted(items, key=lambda each: each.name)

    async def logs(
        self, namespace: str, pod: str, *, follow: bool = False, tail: int | None = None
    ) -> AsyncIterator[bytes]:
        """What the exec server of a pod has logged; raises KubernetesError."""
        what = f"read the log of pod {namespace}/{pod}"
        query = {"container": SANDBOX_CONTAINER, "follow": "true" if follow else "false"}
        if tail is not None:
            query["tailLines"] = str(tail)
        with _translated(what):
            response = await self._open(
                "GET",
                _path("/api/v1/namespaces", namespace, "pods", pod, "log"),
                query=query,
                seconds=_FOLLOW_SECONDS if follow else _TIMEOUT,
            )
        try:
            with _translated(what):
                await _accepted(what, response)
            async for chunk in response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise KubernetesError(f"the log of pod {namespace}/{pod} broke off: {error}") from None
        finally:
            response.close()

    async def port_forward(
        self, namespace: str, pod: str, port: int
    ) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket to a pod's port; raises KubernetesError.

        Its messages are chunks of two channels, the first byte saying which.
        """
        configuration = self._configuration
        own = await configuration.get_api_key_with_prefix("BearerToken")
        path = _path("/api/v1/namespaces", namespace, "pods", pod, "portforward")
        what = f"forward a port to pod {namespace}/{pod}"
        with _translated(what):
            try:
                return await asyncio.wait_for(
                    self._connected().ws_connect(
                        f"{configuration.host}{path}?ports={port}",
                        protocols=("v4.channel.k8s.io",),
                        headers={"authorization": own} if own else None,
                        proxy=configuration.proxy,
                        server_hostname=configuration.tls_server_name,
                        heartbeat=_HEARTBEAT,
                    ),
                    _TIMEOUT,
                )
            except aiohttp.WSServerHandshakeError as error:
                raise KubernetesError(
                    f"cannot {what}: {_refusal(error.status)}", error.status
                ) from None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Every forwarded connection holds one of these: no bound, or the next would wait.
            connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=True)
        return self._session

    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        seconds: float = _TIMEOUT,
    ) -> aiohttp.ClientResponse:
        """Send a request; returns when its answer begins, which may take `seconds` to its end."""

        async def send() -> aiohttp.ClientResponse:
            configuration = self._configuration
            own = await configuration.get_api_key_with_prefix("BearerToken")
            return await self._connected().request(
                method,
                f"{configuration.host}{path}",
                params=query,
                headers={"accept": "application/json", **({"authorization": own} if own else {})},
                json=body,
                timeout=aiohttp.ClientTimeout(total=seconds),
                proxy=configuration.proxy,
                proxy_headers=configuration.proxy_headers,
                server_hostname=configuration.tls_server_name,
            )

        return await asyncio.wait_for(send(), _TIMEOUT)

    async def _call(
        self,
        what: str,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
    ) -> dict[str, Any]:
        """The object that is answered; raises KubernetesError."""
        with _translated(what):
            response = await self._open(method, path, query=query, body=body)
            async with response:
                await _accepted(what, response)
                content = await response.read()
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise KubernetesError(f"cannot {what}: the answer is none of a Kubernetes API")
        return found


def _path(root: str, *names: str) -> str:
    return "/".join((root, *(urllib.parse.quote(each, safe="") for each in names)))


async def _accepted(what: str, response: aiohttp.ClientResponse) -> None:
    if response.status >= 300:
        sentence = _sentence(await response.read()) or response.reason or ""
        raise KubernetesError(f"cannot {what}: {sentence}", response.status)


def _existing(paths: str) -> str:
    """Those of some paths of kubeconfigs that exist; raises ConfigurationError for none."""
    every = [Path(each).expanduser() for each in paths.split(os.pathsep)]
    found = [str(each) for each in every if each.is_file()]
    if not found:
        raise ConfigurationError(
            f"no usable Kubernetes configuration: there is no file {paths}; name one with "
            "$KUBECONFIG"
        )
    return os.pathsep.join(found)


def _refusal(status: int) -> str:
    reasons = {
        401: "the Kubernetes API does not know the caller (401)",
        403: "the caller needs the right to create and get pods/portforward there (403)",
        404: "there is no such pod (404)",
    }
    return reasons.get(status, f"HTTP status {status}")


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise KubernetesError(f"cannot {what}: no answer from the Kubernetes API") from None
    except aiohttp.ClientConnectorError as error:
        raise KubernetesError(
            f"cannot {what}: the Kubernetes API at {error.host}:{error.port} cannot be reached: "
            f"{error.os_error}"
        ) from None
    except (aiohttp.ClientError, OSError) as error:
        raise KubernetesError(f"cannot {what}: {error}") from None


def _sentence(body: bytes) -> str:
    """The message of a Kubernetes Status, or the text itself when it is none."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, AttributeError):
        return str(json.loads(text).get("message") or text)
    return text.strip()
