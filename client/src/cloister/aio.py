"""Cloister for asyncio programs.

async with cloister.aio.session("data-analysis") as session:
    result = await session.bash("python3 -c 'print(6*7)'")
"""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence

from ._client import AsyncClient
from ._models import File
from ._programs import AsyncProcess
from ._session import AsyncSession
from ._shells import AsyncCommand, AsyncShell
from ._workspace import AsyncFiles, AsyncWatch

__all__ = [
    "AsyncClient",
    "AsyncCommand",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncSession",
    "AsyncShell",
    "AsyncWatch",
    "session",
]


@contextlib.asynccontextmanager
async def session(
    environment: str,
    *,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    files: Sequence[File] = (),
    namespace: str | None = None,
    kubeconfig: str | None = None,
    context: str | None = None,
) -> AsyncIterator[AsyncSession]:
    """A session of an Environment that ends with the context.

    namespace, kubeconfig, context: see AsyncClient; the rest: see AsyncClient.create_session.
    """
    async with (
        AsyncClient(namespace=namespace, kubeconfig=kubeconfig, context=context) as client,
        await client.create_session(environment, name=name, env=env, files=files) as made,
    ):
        yield made
