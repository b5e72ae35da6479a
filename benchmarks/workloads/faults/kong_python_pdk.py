"""Plugin code that goes wrong as its configuration says, for kong-python-pdk."""

from typing import Any

Schema = ({"how": {"type": "string"}}, {"message": {"type": "string"}})
version = "1.0"
priority = 0


class Plugin:
    def __init__(self, config: "dict[str, Any]") -> None:
        self.how = config.get("how", "")
        self.message = config.get("message", "")
        if self.how == "construct":
            raise ValueError("in the constructor")

    def access(self, kong: Any) -> None:
        kong.request.get_header("host")
        if self.how == "raise":
            raise ValueError("in the handler")
        if self.how == "leave":
            raise SystemExit("in the handler")
        if self.how == "exit":
            kong.response.exit(403, "no")
        kong.response.set_header("x-message", self.message)
