"""Sets a response header: the layout of a Go plugin.

``New()`` returns an object with default values. It is called for each instance, and the fields of
the configuration are then set on the new object. Handlers may start with a capital letter, as in
Go.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps import Kong

Version = "1.0.0"
Priority = 10


class Config:
    message: str

    def Access(self, kong: Kong) -> None:
        host = kong.request.get_header("host")
        kong.response.set_header("x-hello-from-python", f"Python says {self.message} to {host}")
        kong.response.set_header("x-python-pid", str(os.getpid()))


def New() -> Config:
    config = Config()
    config.message = "hello"
    return config
