"""What a program prints, as the client tells of it piece by piece."""

import cloister
from cloister import AsyncProcess


async def read(process: AsyncProcess) -> bytes:
    """Everything that comes from it until its end."""
    events = [each async for each in process]
    return b"".join(each.data for each in events if isinstance(each, cloister.Output))
