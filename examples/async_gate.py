"""Asks another service whether to allow a request: an `async def` handler.

To need nothing but Python, this example speaks HTTP/1.0 itself. With httpx, the request would be
`await self._client.get(...)`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from kongps import Field

if TYPE_CHECKING:
    from kongps import AsyncKong

version = "1.0.0"
priority = 1000


@dataclass
class Plugin:
    host: str = "127.0.0.1"
    port: Annotated[int, Field(between=(1, 65535))] = 9000
    timeout: Annotated[float, Field(gt=0)] = 2.0  # seconds

    async def access(self, kong: AsyncKong) -> None:
        path = await kong.request.get_path()
        try:
            status = await asyncio.wait_for(self._ask(path), self.timeout)
        except (OSError, ValueError, asyncio.TimeoutError):
            await kong.log.err("the gate at ", self.host, ":", self.port, " does not answer")
            await kong.response.exit(503, {"message": "Try again later"})
        if status != 200:
            await kong.response.exit(403, {"message": "Forbidden"})

    async def _ask(self, path: str) -> int:
        """The status code of the service's response for a path."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {self.host}\r\n\r\n".encode())
            line = await reader.readline()
        finally:
            writer.close()
        return int(line.split()[1]) if line.count(b" ") else 0
