"""Requires a key with each request: an authentication plugin.

To keep the example short, the key is a consumer's username; a real plugin would look it up in a
database.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Optional

from kongps import Field
from kongps.fields import no_consumer, protocols

if TYPE_CHECKING:
    from kongps import Kong

version = "1.0.0"
priority = 1250  # the priority of Kong's own key-auth plugin

# Added to the schema beside `config`: what the plugin can be applied to. A plugin that identifies
# the consumer cannot be configured for one consumer.
plugin_fields = [no_consumer(), protocols("http", "https", "grpc", "grpcs")]


@dataclass
class Plugin:
    header: Annotated[str, Field(len_min=1)] = "x-key"
    query_arg: Optional[str] = None  # no query argument by default
    realm: Annotated[str, Field(name="www-authenticate-realm")] = "kong"
    exempt: list[str] = field(default_factory=list)  # paths that need no key

    def access(self, kong: Kong) -> None:
        if kong.request.get_path() in self.exempt:
            return
        key = self._key(kong)
        consumer = kong.client.load_consumer(key, True) if key else None
        if consumer is None:
            # exit sends the response and ends the handler: the code below is not run.
            kong.response.exit(
                401,
                {"message": "Unauthorized" if key else "No key found"},
                {"www-authenticate": f'Key realm="{self.realm}"'},
            )
        kong.client.authenticate(consumer, {"id": consumer["id"]})
        kong.service.request.set_header("x-consumer-username", consumer.get("username", ""))

    def _key(self, kong: Kong) -> Optional[str]:
        key = kong.request.get_header(self.header)
        if key is None and self.query_arg is not None:
            found = kong.request.get_query_arg(self.query_arg)
            key = found if isinstance(found, str) else None  # ?key without a value is True
        return key
