"""Sets a response header: the usual way to write a plugin, as a dataclass.

The fields are the plugin's configuration, and Kong's schema is derived from them. Each instance
(one configuration) is an object of the class. The methods are handlers, named for Kong's phases.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kongps import Kong

version = "1.0.0"
priority = 10  # Kong runs plugins with a higher priority first


@dataclass
class Plugin:
    message: str = "hello"

    def access(self, kong: Kong) -> None:
        host = kong.request.get_header("host")
        kong.response.set_header("x-hello-from-python", f"Python says {self.message} to {host}")
        kong.response.set_header("x-python-pid", str(os.getpid()))
