# ruff: noqa
# As an author would have written it for kong-python-pdk
from typing import Optional

import kong_pdk.pdk.kong as kong
from kong_pdk.pdk.kong import err, kong as Kong, number, table
from kong_pdk.pdk.kong.request import request

version = 0.5
Schema = []


class Plugin:
    config: dict
    request: Optional[request]

    def __init__(self, config: table):
        self.config = config

    def access(self, kong: Kong) -> Optional[err]:
        size: number = 1
        return None
