"""The auth workload for kongps: looks a consumer up, ends the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

version = "1.0"
priority = 0


class Config:
    message: str = "hello"

    def access(self, kong: Kong) -> None:
        consumer = kong.client.load_consumer("alice", True)
        name = consumer["username"] if consumer else "nobody"
        kong.response.exit(403, f"no entry for {name}")


def New() -> Config:
    return Config()
