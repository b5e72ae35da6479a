"""Lets requests through that carry a key: an authentication plugin.

The key is a consumer's username here, to keep the example short; a real one looks it up elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Optional

from kongps import Field
from kongps.fields import no_consumer, protocols

if TYPE_CHECKING:
    from kongps import Kong

version = "1.0.0"
priority = 1250  # where Kong's own key-auth stands

# Beside `config` in the schema: what the plugin can be attached to. One that finds out who the
# consumer is cannot belong to a consumer.
plugin_fields = [no_consumer(), protocols("http", "https", "grpc", "grpcs")]


@dataclass
class Plugin:
    header: Annotated[str, Field(len_min=1)] = "x-key"
    query_arg: Optional[str] = None  # no query argument unless it is configured
    realm: Annotated[str, Field(name="www-authenticate-realm")] = "kong"
    exempt: list[str] = field(default_factory=list)  # paths that need no key

    def access(self, kong: Kong) -> None:
        if kong.request.get_path() in self.exempt:
            return
        key = self._key(kong)
        consumer = kong.client.load_consumer(key, True) if key else None
        if consumer is None:
            # exit answers the client and ends the handler: nothing below it is run.
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
