#!/usr/bin/env python3
# ruff: noqa
# As an author would have written it for kong-python-pdk
import kong_pdk.pdk.kong as kong
from kong_pdk.exception import PDKException

Schema = (
    {"message": {"type": "string"}},
    {"names": {"type": "array", "elements": {"type": "string"}, "default": ("a",)}},
)
version = "0.1.0"
priority = 100


class Plugin(object):
    def __init__(self, config):
        self.config = config

    def access(self, kong: kong.kong):
        try:
            host, err = kong.request.get_header("host")
        except PDKException:
            return
        kong.response.set_header("x-greeting", "%s %s" % (self.config.get("message"), host))

    def log(self, kong: kong.kong):
        kong.log.info("done")


if __name__ == "__main__":
    from kong_pdk.cli import start_dedicated_server

    start_dedicated_server("py-greeter", Plugin, version, priority, Schema)
