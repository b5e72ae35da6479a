"""Plugin code that goes wrong as its configuration says, for kongps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps.pdk import Kong

version = "1.0"
priority = 0


@dataclass
class Plugin:
    how: str = ""
    message: str = ""

    def __post_init__(self) -> None:
        if self.how == "construct":
            raise ValueError("in the constructor")

    def access(self, kong: Kong) -> None:
        kong.request.get_header("host")
        if self.how == "raise":
            raise ValueError("in the handler")
        if self.how == "leave":
            raise SystemExit("in the handler")
        if self.how == "exit":
            kong.response.exit(403, "no")
        kong.response.set_header("x-message", self.message)
