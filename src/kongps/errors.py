"""Every error that kongps raises, in one tree.

``KongpsError`` is the base. What reaches a plugin's code is a :class:`PDKError`; what keeps a
plugin from being served is a :class:`PluginError` (or, for one instance, a :class:`ConfigError`);
what keeps the server from running is a :class:`ServerError`.
"""

from __future__ import annotations

__all__ = [
    "BuildError",
    "ConfigError",
    "KongpsError",
    "NativeError",
    "PDKError",
    "PluginError",
    "PluginNameError",
    "ProtocolError",
    "ServerError",
    "UsageError",
]


class KongpsError(Exception):
    """Base of all errors of kongps."""


class PDKError(KongpsError):
    """A PDK function failed: Kong answered with an error, or the call could not be made.

    :ivar function: the PDK function's full name, such as ``kong.request.get_header``.
    :ivar reason: what Kong said, or why the call was not sent.
    """

    def __init__(self, function: str, reason: str) -> None:
        super().__init__(function, reason)
        self.function = function
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.function}: {self.reason}"


class PluginError(KongpsError):
    """A plugin cannot be loaded.

    :ivar plugin: the plugin's name.
    :ivar reason: one sentence: what is wrong, where (file and line), and how to mend it.
    """

    def __init__(self, plugin: str, reason: str) -> None:
        super().__init__(plugin, reason)
        self.plugin = plugin
        self.reason = reason

    def __str__(self) -> str:
        return f"plugin {self.plugin!r}: {self.reason}"


class PluginNameError(PluginError):
    """A plugin's name breaks Kong's rules for plugin names."""


class ConfigError(KongpsError):
    """A plugin's structure refused a configuration.

    :ivar path: the field, such as ``config.limits[0].minute``; never its value.
    :ivar reason: what was expected there.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ProtocolError(KongpsError):
    """What a peer sent is not the protocol; its connection has to be closed."""


class NativeError(KongpsError):
    """A native plugin's handler or constructor said that it failed, with the reason it gave."""


class BuildError(KongpsError):
    """A plugin cannot be compiled; what the compiler said is on stderr."""


class ServerError(KongpsError):
    """The server cannot start or go on: a socket in use, a directory missing, a bad setting."""


class UsageError(KongpsError):
    """The command line or the environment asks for what there is not."""
