"""The hello workload for kongps: reads one header, sets two."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

PID = str(os.getpid())

version = "1.0"
priority = 0


class Config:
    message: str = "hello"

    def access(self, kong: Kong) -> None:
        host = kong.request.get_header("host")
        kong.response.set_header("x-hello-from-kongps", f"kongps says {self.message} to {host}")
        kong.response.set_header("x-kongps-pid", PID)


def New() -> Config:
    return Config()
