"""The compute workload for kong-python-pdk: about 0.2 ms of Python, one header set."""

from typing import Any

Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"
priority = 0
ROUNDS = 2500


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config

    def access(self, kong: Any) -> None:
        total = 1
        for number in range(ROUNDS):
            total = (total * 31 + number) % 1000003
        kong.response.set_header("x-sum", str(total))
