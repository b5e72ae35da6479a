"""Which names a plugin can have."""

from __future__ import annotations

import re

from kongps.errors import PluginNameError

__all__ = ["MAX_NAME_LENGTH", "check_name", "shown_name", "valid_name"]

# A file name has 255 bytes; the longest suffix of a compiled module takes some 40 of them.
MAX_NAME_LENGTH = 200

# Kong writes a plugin's name into a Lua module's name (where a dot is a separator), into a list
# with commas in kong.conf, and into URLs of its Admin API. It checks none of that itself.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def valid_name(name: object) -> bool:
    """Whether `name` can be a plugin's name: letters, digits, ``_`` and ``-``, no ``_-`` first."""
    return (
        isinstance(name, str) and len(name) <= MAX_NAME_LENGTH and _NAME.fullmatch(name) is not None
    )


def shown_name(name: str) -> str:
    """`name` as it is kept and shown: the beginning of one that is too long for a plugin's."""
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[:40]}…"


def check_name(name: object) -> str:
    """`name`, when it can be a plugin's name. Called before a name reaches the file system.

    :raises PluginNameError: when it cannot.
    """
    if valid_name(name):
        return name  # type: ignore[return-value]
    shown = name if isinstance(name, str) else repr(name)
    if len(shown) > MAX_NAME_LENGTH:
        raise PluginNameError(shown_name(shown), f"a name has at most {MAX_NAME_LENGTH} characters")
    raise PluginNameError(
        shown, "a name consists of letters, digits, _ and -, and starts with a letter or a digit"
    )
