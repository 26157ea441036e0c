"""Where the exec server finds what it needs; read once from the environment at start."""

import os
from dataclasses import dataclass
from pathlib import Path

VERSION = "0.1.0"
API_GENERATION = 1
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ConfigError(Exception):
    """The server cannot start as configured; the message names the variable and the remedy."""


@dataclass(frozen=True)
class Config:
    """Settings of one exec server."""

    listen: str
    """host:port; the default is every address, port 7443."""
    pod_uid: str
    """The UID of the pod, from the downward API; a claim must name it."""
    identity_dir: Path
    """Holds tls.crt, tls.key and ca.crt of the pod."""
    recipe_dir: Path
    """Holds recipe.json and the files it names; may be empty."""
    state_dir: Path
    """Private scratch space of the server."""
    workspace: Path
    """The tools' working directory."""
    home: Path
    roots: tuple[Path, ...]
    """Directories beside the workspace that file tools may use."""
    read_only_roots: tuple[Path, ...]
    """Directories in which file tools may not write."""
    kept_roots: tuple[Path, ...] = ()
    """Directories of an earlier pod of the session: what lies in them is not overwritten."""
    mount_table: Path = Path("/proc/self/mountinfo")
    """Tells which single files are mounted; they may be read wherever they are."""
    ipv6: bool = False
    """Whether tools may open IPv6 sockets: where pods have addresses for them."""

    @classmethod
    def from_environment(cls, environ: dict[str, str] | None = None) -> "Config":
        """Read CLOISTER_* variables.

        Raises ConfigError for a missing pod UID and for a workspace that would switch the
        confinement of file tools off.
        """
        env = dict(os.environ) if environ is None else environ
        pod_uid = env.get("CLOISTER_POD_UID", "")
        if not pod_uid:
            raise ConfigError("CLOISTER_POD_UID is not set: the server must know its pod's UID")
        workspace = Path(env.get("CLOISTER_WORKSPACE", "/workspace"))
        if not workspace.is_absolute() or workspace == Path("/"):
            raise ConfigError(
                "CLOISTER_WORKSPACE must be an absolute directory other than /, "
                "which would leave file tools unconfined"
            )
        roots = env.get("CLOISTER_ROOTS", "/tmp:/home/agent:/mnt/session")  # noqa: S108 - the pod's own
        read_only = env.get("CLOISTER_READ_ONLY_ROOTS", "/mnt/session/uploads")
        return cls(
            listen=env.get("CLOISTER_LISTEN", "0.0.0.0:7443"),
            pod_uid=pod_uid,
            identity_dir=Path(env.get("CLOISTER_IDENTITY_DIR", "/run/cloister/identity")),
            recipe_dir=Path(env.get("CLOISTER_RECIPE_DIR", "/run/cloister/recipe")),
            state_dir=Path(env.get("CLOISTER_STATE_DIR", "/run/cloister/state")),
            workspace=workspace,
            home=Path(env.get("CLOISTER_HOME", "/home/agent")),
            roots=tuple(Path(each) for each in roots.split(":") if each),
            read_only_roots=tuple(Path(each) for each in read_only.split(":") if each),
            kept_roots=tuple(
                Path(each) for each in env.get("CLOISTER_KEPT_ROOTS", "").split(":") if each
            ),
            ipv6=env.get("CLOISTER_IPV6", "") == "true",
            mount_table=Path(env.get("CLOISTER_MOUNT_TABLE", "/proc/self/mountinfo")),
        )

    def tool_environment(self) -> dict[str, str]:
        """The variables every tool process starts from: an allow-list, nothing inherited."""
        user = "agent" if os.getuid() else "root"
        return {
            "PATH": DEFAULT_PATH,
            "HOME": str(self.home),
            "USER": user,
            "LOGNAME": user,
            # Not LANG: C.UTF-8 differs from C in this category only, and every program that
            # starts would look for twelve files of the others.
            "LC_CTYPE": "C.UTF-8",
            "SHELL": "/bin/bash",
            "TERM": "dumb",
            "TMPDIR": "/tmp",  # noqa: S108 - the pod's own
        }
