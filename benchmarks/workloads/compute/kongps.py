"""The compute workload for kongps: about 0.2 ms of Python, one header set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

version = "1.0"
priority = 0

ROUNDS = 2500


class Config:
    message: str = "hello"

    def access(self, kong: Kong) -> None:
        total = 1
        for number in range(ROUNDS):
            total = (total * 31 + number) % 1000003
        kong.response.set_header("x-sum", str(total))


def New() -> Config:
    return Config()
