"""HTTPS for git, to one address and no other."""

import ssl
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import urllib3
from dulwich.client import AbstractHttpGitClient
from dulwich.errors import GitProtocolError

from .work import MAX_PACKED, Credentials, Problem

_REDIRECTS = 3
_MOVED = (301, 302, 303, 307, 308)
_SILENCE_SECONDS = 30.0
_HEADERS_OF_OURS = {"User-Agent": "git/cloister", "Accept-Encoding": "identity"}


class TransferFailed(GitProtocolError):
    """The server did not answer what was asked for."""

    def __init__(self, problem: Problem, sentence: str) -> None:
        """`sentence` goes on after "the repository"; it quotes nothing the server said."""
        super().__init__(sentence)
        self.problem = problem
        self.sentence = sentence


class PinnedClient(AbstractHttpGitClient):
    """Git's smart HTTP with one server, at an address that was checked before.

    The certificate must be for the URL's host. Redirects are followed on the same host and port
    only, and no more than MAX_PACKED bytes are read in all.
    """

    def __init__(
        self, url: str, address: str, ca_pem: str, credentials: Credentials | None
    ) -> None:
        """Nothing is dialed yet; raises TransferFailed for CAs that cannot be read."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._left = MAX_PACKED
        context = ssl.create_default_context()
        if ca_pem:
            try:
                context.load_verify_locations(cadata=ca_pem)
            except ssl.SSLError:
                raise TransferFailed(
                    "untrusted", "is not fetched: git.caBundle holds no certificates"
                ) from None
        self._pool = urllib3.HTTPSConnectionPool(
            address,
            self._port,
            ssl_context=context,
            server_hostname=self._host,
            assert_hostname=self._host,
            maxsize=1,
            timeout=urllib3.Timeout(connect=10.0, read=_SILENCE_SECONDS),
            retries=False,
        )
        host = parts.netloc.rpartition("@")[2]
        self._headers = {**_HEADERS_OF_OURS, "Host": host, "Pragma": "no-cache"}
        if credentials:
            pair = f"{credentials.username}:{credentials.password}"
            self._headers |= urllib3.util.make_headers(basic_auth=pair.encode().decode("latin-1"))
        super().__init__(url, thin_packs=False, quiet=True)

    def _http_request(
        self,
        url: str,
        headers: dict[str, str] | None = None,
        data: bytes | Iterator[bytes] | None = None,
        raise_for_status: bool = True,  # noqa: ARG002 - of the interface
    ) -> tuple[Any, Callable[[int], bytes]]:
        asked = url
        for _ in range(_REDIRECTS):
            response = self._ask(url, headers, data)
            where = response.headers.get("Location")
            if response.status not in _MOVED or data is not None or not where:
                break
            response.close()
            url = urljoin(url, where)
        self._check(response)
        found: Any = response
        found.content_type = response.headers.get("Content-Type")
        found.redirect_location = url if url != asked else ""
        return found, lambda size: self._read(response, size)

    def _ask(self, url: str, headers: dict[str, str] | None, data: Any) -> Any:
        parts = urlsplit(url)
        if (parts.scheme, parts.hostname, parts.port or 443) != ("https", self._host, self._port):
            raise TransferFailed("redirected", "leads to another host, which is not followed")
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        try:
            return self._pool.urlopen(
                "GET" if data is None else "POST",
                target,
                body=data,
                headers={**self._headers, **(headers or {})},
                redirect=False,
                preload_content=False,
                decode_content=False,
                assert_same_host=False,
            )
        except urllib3.exceptions.SSLError:
            raise TransferFailed(
                "untrusted", "has a certificate that is not trusted; see git.caBundle"
            ) from None
        except urllib3.exceptions.HTTPError:
            raise TransferFailed("unreachable", "cannot be reached") from None

    def _check(self, response: Any) -> None:
        if response.status in (401, 403):
            raise TransferFailed("refused", "refuses these credentials, or wants some")
        if response.status == 404:
            raise TransferFailed("missing", "does not exist, or not for these credentials")
        if response.status in _MOVED:
            raise TransferFailed("redirected", "leads from one place to the next")
        if response.status == 429 or response.status >= 500:
            raise TransferFailed("unreachable", f"answers with HTTP status {response.status}")
        if response.status != 200:
            raise TransferFailed("unsupported", f"answers with HTTP status {response.status}")
        kind = response.headers.get("Content-Type") or ""
        if not kind.startswith("application/x-git-"):
            raise TransferFailed("unsupported", "is no git repository that speaks smart HTTP")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise TransferFailed("unsupported", "answers with an encoding that was not asked for")

    def _read(self, response: Any, size: int) -> bytes:
        try:
            data: bytes = response.read(size)
        except urllib3.exceptions.HTTPError:
            raise TransferFailed("unreachable", "stopped answering") from None
        self._left -= len(data)
        if self._left < 0:
            raise TransferFailed("too-large", f"sends more than {MAX_PACKED >> 20} MiB")
        return data
