"""Checks of argument values for which Kong would abandon the event.

The core checks the types of arguments, so a value of a wrong type passes here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Union

__all__ = [
    "check_choice",
    "check_headers",
    "check_limit",
    "check_query",
    "check_range",
]

_SCALARS = (str, bytes, int, float)


def check_range(function: str, argument: str, value: Any, low: int, high: int) -> None:
    """Lets whole numbers from `low` to `high` pass.

    :raises ValueError: naming the function and the argument.
    """
    if type(value) is int and low <= value <= high:
        return  # nearly always
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not low <= value <= high or value != int(value):
        raise ValueError(
            f"{function}: the argument {argument!r} must be a whole number from {low} to {high}, "
            f"not {value!r}"
        )


def check_limit(function: str, argument: str, value: Any) -> None:
    """Lets a limit of 1 to 1000 entries pass, and None for Kong's default of 100.

    :raises ValueError: naming the function and the argument.
    """
    if value is not None:
        check_range(function, argument, value, 1, 1000)


def check_choice(function: str, argument: str, value: Any, choices: tuple[str, ...]) -> None:
    """Lets the values in `choices` pass.

    :raises ValueError: naming the function and the argument.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str) and value not in choices:
        raise ValueError(
            f"{function}: the argument {argument!r} must be one of {', '.join(choices)}, "
            f"not {value!r}"
        )


def check_headers(function: str, argument: str, headers: Any) -> None:
    """Lets maps of header names to values pass.

    :raises TypeError: for a name that is not text, or a value that Kong refuses.
    """
    for name, value in _entries(function, argument, headers, "a header's name"):
        for item in value if isinstance(value, (list, tuple)) else ():
            if not isinstance(item, (str, bytes)):
                raise TypeError(
                    f"{function}: the values of {name!r} must be strings, not {type(item).__name__}"
                )


def check_query(function: str, argument: str, args: Any) -> None:
    """Lets maps of names to a string, a number, a boolean or a list of these pass.

    :raises TypeError: for a name that is not text, or a value that Kong cannot encode.
    """
    for name, value in _entries(function, argument, args, "a name"):
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if item is not None and not isinstance(item, _SCALARS):
                raise TypeError(
                    f"{function}: {name!r} must be a string, a number, a boolean or a list of "
                    f"these, not {type(item).__name__}"
                )


def _entries(
    function: str, argument: str, given: Any, what: str
) -> Iterator[tuple[Union[str, bytes], Any]]:
    """The entries of a map; none for a value that the core refuses.

    :raises TypeError: for a list, which Kong would take for a map, and a name that is not text.
    """
    if not isinstance(given, dict):
        if given and isinstance(given, (list, tuple)):
            raise TypeError(f"{function}: the argument {argument!r} must map names to values")
        return
    for name, value in given.items():
        if not isinstance(name, (str, bytes)):
            raise TypeError(f"{function}: {what} must be a string, not {type(name).__name__}")
        yield name, value
