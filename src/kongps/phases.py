"""The phases in which Kong calls a plugin, in Kong's order, for what does without the core.

The core has the same list, and compiled plugins its numbers; a test compares them.
"""

from __future__ import annotations

__all__ = ["PHASE_NAMES"]

PHASE_NAMES = ("certificate", "rewrite", "access", "response", "preread", "log")
