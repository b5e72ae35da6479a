"""The phases in which Kong calls a plugin, in Kong's order.

Their places in this list are the numbers that the core and compiled plugins have for them
(``core/wire/phases.pxd``, ``include/kongps/phases.h``).
"""

from __future__ import annotations

__all__ = ["PHASE_NAMES"]

PHASE_NAMES = ("certificate", "rewrite", "access", "response", "preread", "log")
