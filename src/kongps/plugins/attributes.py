"""Where a plugin is read from, and what its class or module says of it: version and the like."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Optional

from kongps.errors import PluginError, SchemaError, UnsupportedType
from kongps.settings import ON_ERROR

__all__ = [
    "DEFAULT_VERSION",
    "Source",
    "attribute",
    "read_flag",
    "read_on_error",
    "read_priority",
    "read_version",
    "shown",
]

# Kong 3 does not load a plugin without a version.
DEFAULT_VERSION = "0.0.0"

# Up to three numbers, as Kong 3 wants it; it cuts off what follows them.
_VERSION = re.compile(r"\d+(\.\d+){0,2}([-+][0-9A-Za-z.+-]+)?")

# Kong keeps a priority in a Lua number, which holds whole numbers up to this.
_PRIORITY_LIMIT = 2**53


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


def attribute(source: Source, cls: Any, names: Iterable[str], fields: Iterable[str] = ()) -> Any:
    """The attribute of the class, else of the module, with one of some names; None without.

    :param fields: names of the structure's fields, which are not attributes of the plugin.
    """
    for holder in (cls, source.module):
        own = set(fields) if holder is cls else set()
        found = {}
        for name in names:
            value = getattr(holder, name, None)
            if value is None or name in own or _is_code(value):
                continue
            if not _is_slot(holder, name):
                found[name] = value
        values = list(found.values())
        if any(value != values[0] for value in values):
            raise source.error(f"{' and '.join(found)} differ; keep one")
        if values:
            return values[0]
    return None


def _is_code(value: Any) -> bool:
    """Whether something is a function or a module: ``from importlib.metadata import version``."""
    if isinstance(value, (str, int, float, list, tuple, dict)):
        return False
    return inspect.isroutine(value) or inspect.ismodule(value)


def _is_slot(holder: Any, name: str) -> bool:
    """Whether an attribute of a class stands for an attribute of its objects."""
    return isinstance(holder, type) and hasattr(
        inspect.getattr_static(holder, name, None), "__get__"
    )


def read_version(source: Source, value: Any, *, strict: bool) -> str:
    """The version, checked.

    :param strict: whether it must be what Kong 3 takes.
    """
    if value is None:
        return DEFAULT_VERSION
    if not strict and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise source.error(f'its version is {shown(value)}; it must be a string such as "1.0.0"')
    if strict and not _VERSION.fullmatch(value):
        raise source.error(f'its version is {value!r}; Kong takes up to three numbers, "1.0.0"')
    return value


def read_priority(source: Source, value: Any) -> int:
    """The priority, checked."""
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise source.error(f"its priority is {shown(value)}; it must be a whole number")
    if abs(value) > _PRIORITY_LIMIT:
        raise source.error("its priority is beyond what Kong can hold, 2**53")
    return value


def read_flag(source: Source, name: str, value: Any) -> Optional[bool]:
    """An attribute that is True or False; None without."""
    if value is None or isinstance(value, bool):
        return value
    raise source.error(f"its attribute {name} is {shown(value)}; it must be True or False")


def read_on_error(source: Source, value: Any) -> Optional[str]:
    """``on_error``, checked; None without."""
    if value is None or value in ON_ERROR:
        return value  # type: ignore[no-any-return]
    raise source.error(
        f"its attribute on_error is {shown(value)}; it must be {' or '.join(map(repr, ON_ERROR))}"
    )
