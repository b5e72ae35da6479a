"""Sets a response header: kong-python-pdk's layout, whose plugins run unchanged.

The schema is written by hand, the class is created with the configuration, and a PDK call returns a
pair of a value and an error. kong-python-pdk need not be installed for the imports to work.
"""

import os

import kong_pdk.pdk.kong as kong

Schema = ({"message": {"type": "string"}},)

version = "1.0.0"
priority = 10


class Plugin:
    def __init__(self, config):
        self.config = config

    def access(self, kong: kong.kong):
        host, err = kong.request.get_header("host")
        if err:
            kong.log.err("no host header: ", err)
        message = self.config.get("message") or "hello"
        kong.response.set_header("x-hello-from-python", f"Python says {message} to {host}")
        kong.response.set_header("x-python-pid", str(os.getpid()))


if __name__ == "__main__":
    from kong_pdk.cli import start_dedicated_server

    start_dedicated_server("hello_kong_pdk", Plugin, version, priority, Schema)
