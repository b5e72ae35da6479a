"""kongps: a plugin server for Kong Gateway.

Plugins are plain Python: a class with typed fields (its configuration) and one method for each
phase it handles, which takes the PDK as ``kong``. See the README for a first one.

Importing this package is cheap; what is needed to run a server is imported when it is used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
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
    from kongps.fields import Field
    from kongps.pdk import Kong

__all__ = [
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
]

_LAZY = {"Field": "kongps.fields", "Kong": "kongps.pdk"}

if importlib.util.find_spec("kongps.core.dispatch") is None:
    raise ImportError(
        f"kongps {__version__} has no compiled core for this interpreter "
        f"({sys.implementation.name} {sys.version.split()[0]}, "
        f"{sysconfig.get_config_var('EXT_SUFFIX')}); build it with: "
        f"{sys.executable} -m pip install --force-reinstall --no-binary kongps kongps "
        f"(in a checkout: {sys.executable} -m pip install -e .)"
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'kongps' has no attribute {name!r}")
