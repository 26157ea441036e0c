"""The few calls that starting a cluster needs of its API server."""

import http.client
import json
import ssl
from typing import Any

from .components import Config
from .errors import ClusterError


class Api:
    """Calls the API server as its administrator."""

    def __init__(self, config: Config) -> None:
        pki = config.places.pki
        self._address = config.node_ip
        self._context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._context.load_cert_chain(str(pki / "admin.crt"), str(pki / "admin.key"))

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request; returns the status and the decoded body, or (0, None) without an answer."""
        connection = http.client.HTTPSConnection(
            self._address, 6443, context=self._context, timeout=5
        )
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):
            return 0, None
        finally:
            connection.close()
        try:
            return response.status, json.loads(data)
        except ValueError:
            return response.status, data.decode(errors="replace")

    def works(self) -> bool:
        """Whether the API server says that it is ready."""
        return self.call("GET", "/readyz")[0] == 200

    def exists(self, path: str) -> bool:
        """Whether there is an object at this path."""
        return self.call("GET", path)[0] == 200

    def create(self, path: str, body: Any) -> None:
        """Create an object unless it exists; raises ClusterError with the server's words."""
        status, answer = self.call("POST", path, body)
        if status not in (201, 409):
            said = answer.get("message", "") if isinstance(answer, dict) else answer
            raise ClusterError(f"the API server refused {path} ({status}): {said}")

    def node_ready(self, name: str) -> bool:
        """Whether a node is Ready."""
        status, node = self.call("GET", f"/api/v1/nodes/{name}")
        if status != 200:
            return False
        conditions = node["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
