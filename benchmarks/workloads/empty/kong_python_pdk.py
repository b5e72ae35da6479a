"""The empty workload for kong-python-pdk: no PDK call."""

from typing import Any

Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"
priority = 0


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config

    def access(self, kong: Any) -> None:
        pass
