"""The empty workload for kongps: no PDK call."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

version = "1.0"
priority = 0


class Config:
    message: str = "hello"

    def access(self, kong: Kong) -> None:
        pass


def New() -> Config:
    return Config()
