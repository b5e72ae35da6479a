"""Where a plugin is read from, and the errors that name that place."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from kongps.errors import PluginError, SchemaError, UnsupportedType

__all__ = ["Source", "shown"]


class Source(NamedTuple):
    """Where a plugin is read from.

    :ivar name: the plugin's name.
    :ivar module: the module with its attributes, or None for a class alone.
    :ivar path: its file, or "".
    :ivar describe: describes an exception that plugin code raised, with file and line.
    """

    name: str
    module: Optional[types.ModuleType]
    path: str
    modified: float
    describe: Callable[[BaseException], str]

    def error(self, reason: str) -> PluginError:
        """A :class:`PluginError` of this plugin, with its file."""
        return PluginError(self.name, f"{self.path}: {reason}" if self.path else reason)

    def call(self, function: Callable[[], Any], what: str) -> Any:
        """Calls plugin code, or what reads it, while the plugin is loaded.

        :raises PluginError: when it raises anything.
        """
        try:
            return function()
        except PluginError:
            raise
        except (SchemaError, UnsupportedType) as error:
            raise self.error(str(error)) from error
        except BaseException as error:
            raise PluginError(self.name, f"{what} failed: {self.describe(error)}") from error


def shown(value: object) -> str:
    """A value in a message: simple ones as they are, of others the type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"an object of type {type(value).__name__}"
