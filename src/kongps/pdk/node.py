"""``kong.node``: this Kong node."""

from __future__ import annotations

from kongps.core.dispatch.namespace import Namespace
from kongps.pdk._check import check_choice
from kongps.pdk.entities import MemoryStats

__all__ = ["Node"]

_UNITS = ("b", "B", "k", "K", "m", "M", "g", "G")


class Node(Namespace):
    """``kong.node``: this Kong node."""

    __slots__ = ()

    def get_id(self) -> str:
        """The node's id.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :returns: a UUID.
        """
        return self._call("kong.node.get_id")

    def get_memory_stats(self, unit: str | None = None, scale: int | None = None) -> MemoryStats:
        """How much memory Kong's workers and shared dictionaries take.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.0.

        :param unit: ``"b"`` (bytes, the default), ``"k"``, ``"m"`` or ``"g"``, in either case.
        :param scale: digits behind the point, from 0; default 2. Not used for bytes.
        :returns: sizes as numbers of bytes, or as text such as ``"208.00 KiB"`` with a unit.
        :raises ValueError: for another unit, or a scale below 0.
        """
        check_choice("kong.node.get_memory_stats", "unit", unit, _UNITS)
        if isinstance(scale, (int, float)) and scale < 0:
            raise ValueError(
                f"kong.node.get_memory_stats: the argument 'scale' must be 0 or more, not {scale!r}"
            )
        return self._call("kong.node.get_memory_stats", unit, scale)

    def get_hostname(self) -> str | None:
        """The name of the machine that Kong runs on.

        Phases: certificate, rewrite, access, response, preread, log. Since Kong 2.3.

        :returns: the name; None on a Kong that does not have the function.
        """
        return self._call("kong.node.get_hostname")
