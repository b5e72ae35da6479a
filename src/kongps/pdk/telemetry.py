"""``kong.telemetry``: OpenTelemetry logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kongps.core.dispatch.namespace import Namespace

__all__ = ["Telemetry"]


class Telemetry(Namespace):
    """``kong.telemetry``: what Kong's OpenTelemetry plugin reports."""

    __slots__ = ()

    def log(
        self,
        plugin_name: str,
        plugin_config: Mapping[str, Any],
        message_type: str,
        message: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> bool | None:
        """Writes an entry to the OpenTelemetry log.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 3.8.

        :param plugin_name: the plugin's name.
        :param plugin_config: the plugin's configuration, of which Kong takes the plugin's id.
        :param message_type: a word to sort the entries by.
        :param message: the entry's text.
        :param attributes: further data of the entry.
        :returns: True; None when no OpenTelemetry plugin is set up to take logs.
        """
        return self._call(
            "kong.telemetry.log", plugin_name, plugin_config, message_type, message, attributes
        )
