"""The log workload for kong-python-pdk: reads Kong's log record, JSON decoded."""

import json
from typing import Any

Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"
priority = 0


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config

    def log(self, kong: Any) -> None:
        text, err = kong.log.serialize()
        if err:
            kong.log.err(err)
            return
        if json.loads(text)["response"]["status"] != 200:
            kong.log.err("another status")
