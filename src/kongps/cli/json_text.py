"""Plain values as JSON, to the byte what ``json.dumps`` makes of them.

Importing json takes longer than all there is to write in a dump. It is asked for what needs more
than copying: text with escapes, say.
"""

from __future__ import annotations

from typing import Any

__all__ = ["json_text"]

_CONSTANTS = {None: "null", True: "true", False: "false"}
_INFINITY = float("inf")


def json_text(value: Any) -> str:
    """`value` as JSON.

    :raises TypeError: when JSON has nothing for it.
    """
    kind = type(value)
    if kind is str and value.isascii() and value.isprintable() and not {'"', "\\"} & set(value):
        return f'"{value}"'
    if kind is dict and all(type(key) is str for key in value):
        rows = (f"{json_text(key)}: {json_text(each)}" for key, each in value.items())
        return f"{{{', '.join(rows)}}}"
    if kind is list:
        return f"[{', '.join(map(json_text, value))}]"
    if value is None or kind is bool:
        return _CONSTANTS[value]
    if kind is int or (kind is float and -_INFINITY < value < _INFINITY):
        return repr(value)
    import json

    return json.dumps(value)
