"""The log workload for kongps: reads Kong's log record, JSON decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

version = "1.0"
priority = 0


class Config:
    message: str = "hello"

    def log(self, kong: Kong) -> None:
        record = kong.log.serialize()
        if record["response"]["status"] != 200:
            kong.log.err("another status")


def New() -> Config:
    return Config()
