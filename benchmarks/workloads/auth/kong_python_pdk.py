"""The auth workload for kong-python-pdk: looks a consumer up, ends the request."""

from typing import Any

Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"
priority = 0


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config

    def access(self, kong: Any) -> None:
        consumer, err = kong.client.load_consumer("alice", True)
        if err:
            kong.log.err(err)
            return
        kong.response.exit(403, f"no entry for {consumer['username']}")
