"""Client: the asynchronous one, for programs without an event loop."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from ._client import DEFAULT_WAIT, AsyncClient
from ._models import EgressDecision, EnvironmentInfo, File, SessionInfo
from ._sync import Session
from ._sync_loop import run as _run
from ._sync_loop import step as _step


class Client:
    """A client of one cluster. It connects at the first call, and several threads may use it.

    Arguments, methods and errors are those of AsyncClient.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        kubeconfig: str | None = None,
        context: str | None = None,
        system_namespace: str | None = None,
        direct: bool | None = None,
    ) -> None:
        self._async = AsyncClient(
            namespace=namespace,
            kubeconfig=kubeconfig,
            context=context,
            system_namespace=system_namespace,
            direct=direct,
        )

    @property
    def namespace(self) -> str:
        """The namespace of the sandboxes."""
        return self._async.namespace

    def create_session(
        self,
        environment: str,
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        files: Sequence[File] = (),
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
        wait: float = DEFAULT_WAIT,
        request_id: str | None = None,
    ) -> Session:
        """Claim a sandbox of an Environment; see AsyncClient.create_session."""
        return Session(
            _run(
                lambda: self._async.create_session(
                    environment,
                    name=name,
                    env=env,
                    files=files,
                    idle_timeout=idle_timeout,
                    max_lifetime=max_lifetime,
                    wait=wait,
                    request_id=request_id,
                )
            )
        )

    def get_session(self, name: str) -> Session:
        """Attach to a session that exists; leaving it does not end it."""
        return Session(_run(lambda: self._async.get_session(name)))

    def list_sessions(self, environment: str | None = None) -> list[SessionInfo]:
        """The namespace's sessions, oldest first; environment: only this one's."""
        return _run(lambda: self._async.list_sessions(environment))

    def session_egress(self, name: str) -> list[EgressDecision]:
        """What a session tried to reach; see AsyncClient.session_egress."""
        return _run(lambda: self._async.session_egress(name))

    def suspend_session(self, name: str) -> SessionInfo:
        """Delete a session's sandbox and keep its workspace; see AsyncClient.suspend_session."""
        return _run(lambda: self._async.suspend_session(name))

    def resume_session(self, name: str, *, wait: float = DEFAULT_WAIT) -> Session:
        """Give a suspended session a new sandbox; see AsyncClient.resume_session."""
        return Session(_run(lambda: self._async.resume_session(name, wait=wait)))

    def delete_session(self, name: str) -> None:
        """End a session; raises NotFoundError."""
        _run(lambda: self._async.delete_session(name))

    def session_info(self, name: str) -> SessionInfo:
        """Read a session, also one that has ended; raises NotFoundError."""
        return _run(lambda: self._async.session_info(name))

    def list_environments(self) -> list[EnvironmentInfo]:
        """The namespace's Environments, by name."""
        return _run(self._async.list_environments)

    def logs(self, name: str, *, follow: bool = False, tail: int | None = None) -> Iterator[bytes]:
        """What the exec server of a session has logged; see AsyncClient.logs."""
        chunks = self._async.logs(name, follow=follow, tail=tail)
        while chunk := _step(chunks):
            yield chunk

    def reach(self, session: Session) -> contextlib.AbstractContextManager[str]:
        """The same as session.reach()."""
        return session.reach()

    def close(self) -> None:
        """Close all connections; sessions go on, and get_session finds them again."""
        _run(self._async.close, ending=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@contextlib.contextmanager
def session(
    environment: str,
    *,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    files: Sequence[File] = (),
    namespace: str | None = None,
    kubeconfig: str | None = None,
    context: str | None = None,
) -> Iterator[Session]:
    """A session of an Environment that ends with the context.

    namespace, kubeconfig, context: see AsyncClient; the rest: see AsyncClient.create_session.
    """
    with (
        Client(namespace=namespace, kubeconfig=kubeconfig, context=context) as client,
        client.create_session(environment, name=name, env=env, files=files) as made,
    ):
        yield made
