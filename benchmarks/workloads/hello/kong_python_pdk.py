"""The hello workload for kong-python-pdk: reads one header, sets two."""

import os
from typing import Any

PID = str(os.getpid())

Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"
priority = 0


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config

    def access(self, kong: Any) -> None:
        host, err = kong.request.get_header("host")
        if err:
            kong.log.err(err)
            return
        message = self.config["message"]
        kong.response.set_header("x-hello-from-python", f"python says {message} to {host}")
        kong.response.set_header("x-python-pid", PID)
