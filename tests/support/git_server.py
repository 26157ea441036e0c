"""A git server over HTTPS: git's own http-backend behind a certificate of a test's CA."""

import base64
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from support.certificates import TestAuthority

HOST = "git.example.com"
_ENV = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_AUTHOR_DATE": "2026-01-02T03:04:05Z",
    "GIT_COMMITTER_DATE": "2026-01-02T03:04:05Z",
    "PATH": os.environ["PATH"],
}


class Repository:
    """A bare repository that the server gives out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.git("init", "-q", "--bare", "-b", "main", str(path), cwd=path.parent)

    def git(self, *command: str, cwd: Path | None = None, given: bytes = b"") -> str:
        """What a git command says."""
        env = {**_ENV, "HOME": str(self.path.parent)}
        where = cwd or self.path
        ran = subprocess.run(
            ["git", *command], cwd=where, env=env, input=given, check=True, capture_output=True
        )
        return ran.stdout.decode().strip()

    def blob(self, content: bytes) -> str:
        """The object id of a file's content."""
        return self.git("hash-object", "-w", "--stdin", given=content)

    def tree(self, *entries: tuple[str, str, str]) -> str:
        """The object id of a tree of (mode, object id, name), whatever they are."""
        raw = b"".join(
            f"{mode} {name}".encode() + b"\0" + bytes.fromhex(sha) for mode, sha, name in entries
        )
        return self.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", given=raw)

    def commit(self, tree: str, branch: str = "main") -> str:
        """The object id of a commit that becomes the branch."""
        made = self.git("commit-tree", tree, "-m", f"{branch} {tree}")
        self.git("update-ref", f"refs/heads/{branch}", made)
        return made

    def files(self, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit of these files in one directory."""
        return self.commit(
            self.tree(*(("100644", self.blob(files[name]), name) for name in sorted(files))), branch
        )


class GitServer:
    """What a running server has, does and was asked."""

    def __init__(self, root: Path, authority: TestAuthority) -> None:
        self.root = root
        self.ca_pem = authority.pem.decode()
        self.port = 0
        self.users: dict[str, str] = {}
        """Passwords by name; empty lets everybody in."""
        self.redirect = ""
        """Where every question is sent instead of being answered."""
        self.gate: threading.Event | None = None
        """Nothing is answered before it is set."""
        self.fetched = 0
        """How often files were asked for."""
        self.asked: list[tuple[str, str | None]] = []
        """Paths, and the header by which somebody proved who they are."""

    def repository(self, name: str) -> Repository:
        """Make a repository."""
        return Repository(self.root / name)

    def url(self, name: str) -> str:
        """Where it is."""
        return f"https://{HOST}:{self.port}/{name}"


def user(header: str | None, passwords: Mapping[str, str]) -> str | None:
    """Who proves by this header who they are, of those with these passwords."""
    if not header or not header.startswith("Basic "):
        return None
    name, _, password = base64.b64decode(header[6:]).decode().partition(":")
    return name if passwords.get(name) == password else None


def answer(
    root: Path, method: str, target: str, asked: Message, body: bytes
) -> tuple[int, dict[str, str], bytes]:
    """What git's own program says to a request about the repositories in a directory: the status,
    the headers, the body.
    """
    parts = urlsplit(target)
    env = {
        **_ENV,
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": parts.path,
        "QUERY_STRING": parts.query,
        "REQUEST_METHOD": method,
        "CONTENT_TYPE": asked.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": asked.get("Git-Protocol", ""),
        "REMOTE_USER": "",
        "HOME": str(root),
    }
    # It ends with 1 where it tells its caller of an error.
    ran = subprocess.run(
        ["git", "http-backend"], env=env, input=body, check=False, capture_output=True
    )
    head, _, content = ran.stdout.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    return int(headers.pop("Status", "200 OK").split()[0]), headers, content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: GitServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def _end(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # Who asked may have gone.
        with suppress(OSError):
            self.wfile.write(body)

    def _serve(self, body: bytes) -> None:
        who = self.headers.get("Authorization")
        self.site.asked.append((self.path, who))
        if self.site.gate is not None:
            self.site.gate.wait(60)
        if self.site.redirect:
            self._end(302, {"Location": self.site.redirect + self.path})
            return
        if self.site.users and user(who, self.site.users) is None:
            self._end(401, {"WWW-Authenticate": "Basic realm=git"})
            return
        self.site.fetched += b"command=fetch" in body
        self._end(*answer(self.site.root, self.command, self.path, self.headers, body))


@contextmanager
def git_server(root: Path) -> Iterator[GitServer]:
    """A server on loopback for the repositories in a directory."""
    authority = TestAuthority()
    pair = authority.issue(dns=HOST)
    (root / "server.pem").write_bytes(pair.certificate + pair.private_key)
    repositories = root / "repositories"
    repositories.mkdir()
    site = GitServer(repositories, authority)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(root / "server.pem")
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
