"""``kong.table``: helpers for Lua tables, here for completeness; Python's dict does more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kongps.core.dispatch.namespace import Namespace

__all__ = ["Table"]


class Table(Namespace):
    """``kong.table``: each call asks Kong for what a dict or a list does at once."""

    __slots__ = ()

    def new(self, narr: int | None = None, nrec: int | None = None) -> list[Any]:
        """An empty table, which arrives as an empty list; write ``[]`` or ``{}`` instead.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param narr: room for so many list entries, in Kong's copy.
        :param nrec: room for so many named entries, in Kong's copy.
        """
        return self._call("kong.table.new", narr, nrec)

    def merge(
        self, t1: Mapping[str, Any] | None = None, t2: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """A dict with the entries of both, `t2` winning; write ``{**t1, **t2}`` instead.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.4.

        :param t1: the first dict.
        :param t2: the second dict.
        """
        return self._call("kong.table.merge", t1, t2) or {}

    def clear(self, tab: Mapping[str, Any] | Sequence[Any]) -> None:
        """Cannot be called from a plugin server: use the dict's or list's own ``clear``.

        Phases: none. Since Kong 2.0.

        :raises PDKError: always.
        """
        self._call("kong.table.clear", tab)
