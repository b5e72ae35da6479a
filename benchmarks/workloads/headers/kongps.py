"""The headers workload for kongps: reads all headers, sets five."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

version = "1.0"
priority = 0


class Config:
    message: str = "hello"

    def access(self, kong: Kong) -> None:
        headers = kong.request.get_headers()
        for number in range(1, 6):
            kong.response.set_header(f"x-copy-{number}", headers[f"x-header-0{number}"])


def New() -> Config:
    return Config()
