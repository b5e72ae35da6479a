"""What plugins written for kong-python-pdk import, where that package is not installed.

Such files name its modules for type hints (``import kong_pdk.pdk.kong as kong``), for the
exception that a PDK call raises, and for the server they start when they are run as a program.
:func:`install` puts a finder at the end of ``sys.meta_path``: the installed package, if there is
one, is always found first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional, TypeVar

from kongps.errors import KongpsError, PDKError, PluginError

__all__ = ["install", "start_dedicated_server"]

# The version whose layout is meant; plugins that look compare it as a number.
_VERSION = 0.36

_NAMESPACES = (
    "client",
    "client.tls",
    "cluster",
    "ctx",
    "ctx.shared",
    "enterprise_edition",
    "enterprise_edition.jwe",
    "ip",
    "log",
    "nginx",
    "nginx.shared",
    "node",
    "plugin",
    "request",
    "response",
    "router",
    "service",
    "service.request",
    "service.response",
    "vault",
)


Serve = Callable[[ModuleType], int]

# What serves the plugin of a module; `kongps run` gives it, a plugin server does not.
_serve: Optional[Serve] = None


class PluginServerException(KongpsError):
    """The name of kong-python-pdk's exception for the server's own errors; never raised here."""


class kong:
    """Stands in annotations for what a handler gets; it cannot be made or called."""

    def __init__(self) -> None:
        raise TypeError("kong is for annotations: a handler gets its kong as an argument")


def start_dedicated_server(
    name: str,
    plugin: type,
    _version: Optional[str] = None,
    _priority: int = 0,
    _schema: Sequence[Any] = (),
) -> None:
    """Serves one plugin of its own, as kong-python-pdk's function of this name does.

    :param name: the plugin's name.
    :param plugin: its class, made with the configuration and having lower-case handlers.
    :raises PluginError: when it is not such a class, or the file is not run as a program.
    :raises ServerError: when the server cannot start.
    """
    if _serve is None:
        raise PluginError(
            name,
            "start_dedicated_server serves a file that is run as a program; call it under "
            'if __name__ == "__main__": and start the file with kongps run FILE',
        )
    module = ModuleType(name)
    vars(module).update(
        Plugin=plugin,
        version=_version,
        priority=_priority,
        Schema=_schema,
        __file__=getattr(sys.modules.get(plugin.__module__), "__file__", None),
    )
    code = _serve(module)
    if code:
        sys.exit(code)


def _fill_kong(module: ModuleType) -> None:
    def find(name: str) -> Any:
        if name in _NAMESPACES:
            return importlib.import_module(f"{module.__name__}.{name}")
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    vars(module).update(
        kong=kong,
        err=str,
        number=TypeVar("number", int, float),
        table=TypeVar("table", list[Any], dict[str, Any]),
        cdata=Any,
        __getattr__=find,
    )


def _fill_namespace(module: ModuleType) -> None:
    name = module.__name__.rpartition(".")[2]
    setattr(module, name, type(name, (), {"__doc__": "Stands in annotations for a namespace."}))


_MODULES: dict[str, Callable[[ModuleType], object]] = {
    "kong_pdk": lambda module: None,
    "kong_pdk.cli": lambda module: setattr(
        module, "start_dedicated_server", start_dedicated_server
    ),
    "kong_pdk.const": lambda module: vars(module).update(__version__=_VERSION, PY3K=True),
    "kong_pdk.exception": lambda module: vars(module).update(
        PDKException=PDKError, PluginServerException=PluginServerException
    ),
    "kong_pdk.kong": lambda module: setattr(module, "kong", kong),
    "kong_pdk.pdk": lambda module: None,
    "kong_pdk.pdk.kong": _fill_kong,
    **{f"kong_pdk.pdk.kong.{name}": _fill_namespace for name in _NAMESPACES},
}


class _Finder:
    """Finds and makes the modules of ``_MODULES``."""

    @staticmethod
    def find_spec(
        name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        if name not in _MODULES or not _is_ours(name.rpartition(".")[0]):
            return None
        return ModuleSpec(name, _Finder, origin="kongps", is_package=True)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        return None

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        _MODULES[module.__name__](module)


def _is_ours(parent: str) -> bool:
    """Whether `parent` is of this stand-in: no module of it goes into an installed package."""
    if not parent:
        return True
    spec = getattr(sys.modules.get(parent), "__spec__", None)
    return spec is not None and spec.loader is _Finder


def install(serve: Optional[Serve] = None) -> None:
    """Lets ``import kong_pdk…`` find the stand-in where nothing else is found.

    :param serve: what ``start_dedicated_server`` calls with a module whose plugin is to be served;
        it returns the exit code.
    """
    global _serve
    if serve is not None:
        _serve = serve
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
