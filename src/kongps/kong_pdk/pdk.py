"""``kong`` as plugins of kong-python-pdk's layout get it: any dotted name is a PDK function.

Such plugins write ``kong.request.get_header("host")`` too, but without types: the name is sent as
it is written, and the value is returned as it came. A call of a function in kongps' table is
checked first; one that is not there (``kong.enterprise_edition.…``) is sent unchecked.
"""

from __future__ import annotations

from typing import Any

from kongps.core.dispatch.namespace import Namespace
from kongps.errors import PDKError
from kongps.pdk import functions as _functions  # noqa: F401  (registers the table)
from kongps.pdk.log import log_arguments

__all__ = ["LuaStyleKong", "PlainKong"]


class _Path:
    """A dotted name behind ``kong``; calling it calls the function of that name."""

    __slots__ = ("_kong", "_name")

    def __init__(self, kong: PlainKong, name: str) -> None:
        self._kong = kong
        self._name = name

    def __getattr__(self, name: str) -> _Path:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Path(self._kong, f"{self._name}.{name}")

    def __call__(self, *args: object) -> Any:
        return self._kong._send(self._name, args)

    def __repr__(self) -> str:
        return f"<{self._name}>"


class PlainKong(Namespace):
    """``kong`` as plugins get it with ``--no-lua-style``: a call returns the value.

    :raises PDKError: when Kong answers a call with an error, or the call cannot be made.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> _Path:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Path(self, f"kong.{name}")

    def _send(self, name: str, args: tuple[object, ...]) -> Any:
        return self._call(name, *log_arguments(name, args))


class LuaStyleKong(PlainKong):
    """``kong`` as plugins get it by default: a call returns ``(value, None)``, as in Lua.

    When Kong answers with an error, or the call cannot be made, it returns ``(None, text)``.
    """

    __slots__ = ()

    def _send(self, name: str, args: tuple[object, ...]) -> Any:
        try:
            return super()._send(name, args), None
        except PDKError as error:
            return None, error.reason
