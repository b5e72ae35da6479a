"""The headers workload for kong-python-pdk: reads all headers, sets five."""

from typing import Any

Schema = ({"message": {"type": "string", "default": "hello"}},)
version = "1.0"
priority = 0


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.config = config

    def access(self, kong: Any) -> None:
        headers, err = kong.request.get_headers()
        if err:
            kong.log.err(err)
            return
        for number in range(1, 6):
            kong.response.set_header(f"x-copy-{number}", headers[f"x-header-0{number}"][0])
