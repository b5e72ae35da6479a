"""The PDK of handlers that are ``async def``: the same names and types, awaited.

::

    async def access(self, kong: AsyncKong) -> None:
        if await kong.request.get_header("x-key") is None:
            await kong.response.exit(401, {"message": "no key"})

The classes are made from those of :mod:`kongps.pdk`, whose methods run in a greenlet while the
handler awaits them; ``aio.pyi``, which ``make docs`` writes from the same classes, has their types.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

from kongps import pdk
from kongps.core.dispatch.namespace import Namespace, namespace
from kongps.core.runners.asyncio import awaited

__all__ = ["AsyncKong", "async_class"]


def _awaited(kind: type[Namespace], name: str) -> Callable[..., Any]:
    method = getattr(kind, name)

    @functools.wraps(method)
    async def call(self: Namespace, *args: Any, **named: Any) -> Any:
        return await awaited(method, self._as(kind), *args, **named)

    return call


@functools.cache
def async_class(kind: type[Namespace]) -> type[Namespace]:
    """The class of a namespace whose functions are awaited.

    :param kind: a class of :mod:`kongps.pdk`.
    :returns: a class with the same public names.
    """
    members: dict[str, Any] = {"__slots__": (), "__doc__": kind.__doc__}
    for name in dir(kind):
        found = inspect.getattr_static(kind, name)
        if isinstance(found, namespace):
            members[name] = namespace(async_class(getattr(kind, name)))
        elif inspect.isfunction(found) and (not name.startswith("_") or name == "__call__"):
            members[name] = _awaited(kind, name)
    return type(f"Async{kind.__name__}", (Namespace,), members)


AsyncKong = async_class(pdk.Kong)
