"""kongps: a plugin server for Kong Gateway.

Plugins are plain Python: a class with typed fields (its configuration) and one method for each
phase it handles, which takes the PDK as ``kong``. See the README for a first one.

Importing this package is cheap; what is needed to run a server is imported when it is used.
"""

from __future__ import annotations

import importlib
import os
from importlib.machinery import EXTENSION_SUFFIXES
from typing import TYPE_CHECKING, Any

from kongps._version import __version__
from kongps.errors import (
    ConfigError,
    KongpsError,
    PDKError,
    PluginError,
    PluginNameError,
    ProtocolError,
    ServerError,
)

if TYPE_CHECKING:
    from kongps.cli.run import run
    from kongps.compiled.build import get_include
    from kongps.fields import Field
    from kongps.pdk import Kong
    from kongps.pdk.aio import AsyncKong

__all__ = [
    "AsyncKong",
    "ConfigError",
    "Field",
    "Kong",
    "KongpsError",
    "PDKError",
    "PluginError",
    "PluginNameError",
    "ProtocolError",
    "ServerError",
    "__version__",
    "get_include",
    "run",
]

_LAZY = {
    "AsyncKong": "kongps.pdk.aio",
    "Field": "kongps.fields",
    "Kong": "kongps.pdk",
    "get_include": "kongps.compiled.build",
    "run": "kongps.cli.run",
}

_core = os.path.join(os.path.dirname(__file__), "core")

if not any(os.path.exists(os.path.join(_core, f"session{end}")) for end in EXTENSION_SUFFIXES):
    from kongps.compiled.checks import core_mismatch

    raise core_mismatch(_core)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kongps' has no attribute {name!r}")
