"""The handlers of a plugin's class: which it has, and whether they can be called."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from kongps.phases import PHASE_NAMES
from kongps.plugins.attributes import Source
from kongps.plugins.plugin import HOOKS

__all__ = ["EXPECTED", "checked_handlers", "coroutines_of", "handler_names"]

EXPECTED = (
    "expected New(), a class Plugin or Config, or one class with handlers "
    f"({', '.join(PHASE_NAMES)}, each a method that takes kong)"
)


def handler_names(cls: Any, *, capitals: bool = True) -> dict[str, str]:
    """The names of a class's handlers, by phase; only the lower-case one when there are both."""
    names = {}
    for phase in PHASE_NAMES:
        for name in (phase.capitalize(), phase) if capitals else (phase,):
            method = getattr(cls, name, None)
            if callable(method) and not isinstance(method, type):
                names[phase] = name
    return names


def checked_handlers(source: Source, cls: Any, *, capitals: bool = True) -> dict[str, str]:
    """As :func:`handler_names`, each checked to be one that can be called with a ``kong``.

    :raises PluginError: when there is none, or one cannot be called.
    """
    names = handler_names(cls, capitals=capitals)
    if not names:
        raise source.error(f"{cls.__name__} has no handler: {EXPECTED}")
    for phase, name in names.items():
        if capitals and name == phase and callable(getattr(cls, phase.capitalize(), None)):
            raise source.error(f"{cls.__name__} has {phase} and {phase.capitalize()}; keep one")
        _check_handler(source, cls, name, coroutines=capitals)
    return names


def is_coroutine_function(function: Any) -> bool:
    """Whether a function is ``async def``, also one that Cython has compiled."""
    function = inspect.unwrap(function)
    compiled = type(function).__name__ == "cython_function_or_method"
    return inspect.iscoroutinefunction(function) or (
        compiled and bool(getattr(function, "_is_coroutine", False))
    )


def coroutines_of(cls: Any, handlers: dict[str, str]) -> frozenset[str]:
    """The phases whose handlers are ``async def``, and the hooks that are."""
    names: dict[str, Iterable[str]] = {**HOOKS}
    names.update((phase, [name]) for phase, name in handlers.items())
    return frozenset(
        what
        for what, written in names.items()
        if any(is_coroutine_function(getattr(cls, name, None)) for name in written)
    )


def _check_handler(source: Source, cls: Any, name: str, *, coroutines: bool) -> None:
    method = inspect.getattr_static(cls, name)
    what = f"{cls.__name__}.{name}"
    function = inspect.unwrap(getattr(method, "__func__", method))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise source.error(f"{what} is a generator: nothing would run it; use return, not yield")
    if not coroutines and is_coroutine_function(function):
        raise source.error(
            f"{what}: handlers of kong-python-pdk's layout cannot be async; annotate the class's "
            "fields and leave out __init__, or use def"
        )
    bound = isinstance(method, (staticmethod, classmethod))
    try:
        signature = inspect.signature(getattr(cls, name))
    except (TypeError, ValueError):
        return  # compiled, without a signature
    try:
        signature.bind(*([None] if bound else [None, None]))
    except TypeError:
        raise source.error(
            f"{what}{signature} cannot be called: a handler takes kong, and nothing else"
        ) from None
