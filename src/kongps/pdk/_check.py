"""Checks of argument values: what Kong would answer by abandoning the event.

The core checks the types of arguments; a value of a wrong type is left to it here.
"""

from __future__ import annotations

from typing import Any

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
        return
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
    if not isinstance(headers, dict):
        if headers and isinstance(headers, (list, tuple)):
            raise TypeError(f"{function}: the argument {argument!r} must map names to values")
        return
    for name, value in headers.items():
        if not isinstance(name, (str, bytes)):
            raise TypeError(
                f"{function}: a header's name must be a string, not {type(name).__name__}"
            )
        if isinstance(value, (list, tuple)):
            for item in value:
                if not isinstance(item, (str, bytes)):
                    raise TypeError(
                        f"{function}: the values of {name!r} must be strings, "
                        f"not {type(item).__name__}"
                    )


def check_query(function: str, argument: str, args: Any) -> None:
    """Lets maps of names to a string, a number, a boolean or a list of these pass.

    :raises TypeError: for a name that is not text, or a value that Kong cannot encode.
    """
    if not isinstance(args, dict):
        if args and isinstance(args, (list, tuple)):
            raise TypeError(f"{function}: the argument {argument!r} must map names to values")
        return
    for name, value in args.items():
        if not isinstance(name, (str, bytes)):
            raise TypeError(f"{function}: a name must be a string, not {type(name).__name__}")
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if item is not None and not isinstance(item, _SCALARS):
                raise TypeError(
                    f"{function}: {name!r} must be a string, a number, a boolean or a list of "
                    f"these, not {type(item).__name__}"
                )
