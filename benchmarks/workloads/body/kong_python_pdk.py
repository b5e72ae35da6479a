"""The body workload for kong-python-pdk: reads the body, hands it on."""

from typing import Any

Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"
priority = 0


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config

    def access(self, kong: Any) -> None:
        body, err = kong.request.get_raw_body()
        if err:
            kong.log.err(err)
            return
        kong.service.request.set_raw_body(body)
