"""``kong.plugin``: the plugin that is running."""

from __future__ import annotations

from kongps.core.dispatch.namespace import Namespace

__all__ = ["PluginNamespace"]


class PluginNamespace(Namespace):
    """``kong.plugin``: the plugin that is running."""

    __slots__ = ()

    def get_id(self) -> str | None:
        """The id of the plugin's entry in Kong's datastore, one for each configuration.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 3.3.

        :returns: a UUID; None on a Kong that does not have the function.
        """
        return self._call("kong.plugin.get_id")
