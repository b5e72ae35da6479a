"""The body workload for kongps: reads the body, hands it on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

version = "1.0"
priority = 0


class Config:
    message: str = "hello"

    def access(self, kong: Kong) -> None:
        kong.service.request.set_raw_body(kong.request.get_raw_body() or b"")


def New() -> Config:
    return Config()
