"""Where a plugin's handlers run, decided from how it is written.

``async def`` handlers run under asyncio. Plugins of kong-python-pdk's layout run in threads, as
they did there. Other plain handlers run inline, on the server's own thread, unless the plugin's
own modules import something of ``MODULES``: then in threads. ``blocking = True`` or ``False`` in
the plugin overrides the last two.

The plugin's own modules are the file that it is loaded from, its package, and the modules beside
it that these import. What they import from elsewhere is not looked into.
"""

from __future__ import annotations

import ast
import contextlib
import os
import sys
import types
from collections.abc import Container, Iterable
from importlib.util import resolve_name
from typing import Optional

from kongps.plugins.plugin import Placed

__all__ = ["MODULES", "place"]

# Modules, and functions of modules, by what a plugin that uses them does: each of these would hold
# up every other request on the server's thread, or finds another request's data on its own.
_USES = {
    "threads or locks": "_thread concurrent.futures fcntl multiprocessing queue threading",
    "an event loop of its own": (
        "aiohttp anyio asyncio eventlet gevent select selectors tornado trio twisted uvloop"
    ),
    "objects that belong to one thread": "sqlite3",
    "sleep": "time.sleep",
    "other processes": "os.popen os.system os.wait os.waitpid pexpect sh subprocess",
    "the network": (
        "dns ftplib grpc http.client httplib2 httpx hvac imaplib ldap ldap3 paramiko poplib pycurl "
        "requests smtplib socket socketserver ssl suds telnetlib urllib.request urllib3 websocket "
        "xmlrpc.client zeep zmq"
    ),
    "a database, a cache or a queue": (
        "MySQLdb asyncpg boto3 botocore cassandra clickhouse_driver confluent_kafka consul "
        "cx_Oracle elasticsearch etcd3 google.cloud influxdb kafka kombu memcache mysql "
        "opensearchpy oracledb peewee pika psycopg psycopg2 pylibmc pymemcache pymongo pymssql "
        "pymysql pyodbc redis snowflake sqlalchemy stomp valkey"
    ),
}

MODULES = {name: use for use, names in _USES.items() for name in names.split()}


# A dotted name that a module uses, and the line; 0 where that is not known.
_Name = tuple[str, int]


def place(
    path: str,
    module: Optional[types.ModuleType],
    *,
    phases: Iterable[str],
    coroutines: frozenset[str],
    blocking: Optional[bool],
    made_for_threads: bool,
) -> Placed:
    """Decides where the plain handlers of a plugin run.

    :param path: the plugin's file.
    :param module: its module; None for a class alone, whose module is not the plugin's.
    :param coroutines: what of it is ``async def``.
    :param blocking: what the plugin says itself.
    :param made_for_threads: whether it has kong-python-pdk's layout.
    """
    if coroutines.issuperset(phases):
        return Placed("asyncio", "they are async def")
    if blocking is not None:
        return Placed("threads" if blocking else "inline", f"it says blocking = {blocking}")
    if made_for_threads:
        return Placed("threads", "it has kong-python-pdk's layout")
    own = [] if module is None else [module]  # it grows while it is read
    for each in own:
        file = getattr(each, "__file__", None) or path
        for name, line in _names(each, file):
            listed = _longest(name, MODULES)
            if listed is not None:
                there = "" if file == path else f"{os.path.basename(file)}, "
                where = f" ({there}line {line})" if line else ""
                return Placed("threads", f"it uses {listed}{where}: {MODULES[listed]}")
            used = _longest(name, sys.modules)
            if used is None or sys.modules[used] in own:
                continue
            if _is_own(used, path, own[0].__name__):
                own.append(sys.modules[used])
    return Placed("inline", "it uses no module that waits or needs threads")


def _longest(name: str, known: Container[str]) -> Optional[str]:
    """The longest beginning of a dotted name that is known."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def _is_own(name: str, path: str, plugin: str) -> bool:
    """Whether a module is the plugin's: of its package, or beside it and not installed there."""
    package = plugin.rpartition(".")[0]  # such as the one that stands for the directory
    if name.startswith((f"{plugin}.", f"{package}.")):
        return True
    # Beside it means in the same directory: a Python with its library may lie further below.
    directory = os.path.dirname(os.path.abspath(path))
    first = name.partition(".")[0]
    return os.path.basename(directory) not in ("site-packages", "dist-packages") and getattr(
        sys.modules.get(first), "__file__", None
    ) in (os.path.join(directory, f"{first}.py"), os.path.join(directory, first, "__init__.py"))


def _names(module: types.ModuleType, path: str) -> list[_Name]:
    """The dotted names of what a module imports and uses of that, in the order of the lines.

    Without its source, as for a compiled module, those of its globals.
    """
    with contextlib.suppress(OSError, SyntaxError, ValueError, ImportError):
        if path.endswith(".py"):
            with open(path, "rb") as file:
                source = _Source(getattr(module, "__package__", None) or "")
                source.visit(ast.parse(file.read()))
            return source.names
    found = []
    for value in list(vars(module).values()):
        if isinstance(value, types.ModuleType):
            name = value.__name__
        else:
            named = (type, types.FunctionType, types.BuiltinFunctionType)
            home = value if isinstance(value, named) else type(value)
            name = f"{home.__module__}.{home.__name__}"
        # _queue.SimpleQueue and the like are the halves in C of what is listed.
        found += [(name, 0), (name.lstrip("_"), 0)]
    return found


class _Source(ast.NodeVisitor):
    """Reads the names out of a module's source.

    :param package: the package that its relative imports start from.
    """

    def __init__(self, package: str) -> None:
        self.names: list[_Name] = []
        self._package = package
        self._imported: dict[str, str] = {}  # what names of the module stand for

    def visit_Import(self, node: ast.Import) -> None:
        for each in node.names:
            first = each.name.partition(".")[0]
            self._imported[each.asname or first] = each.name if each.asname else first
            self.names.append((each.name, node.lineno))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = resolve_name("." * node.level + (node.module or ""), self._package)
        for each in node.names:
            name = self._imported[each.asname or each.name] = f"{base}.{each.name}"
            self.names.append((name, node.lineno))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id in self._imported:
            self.names.append((f"{self._imported[node.value.id]}.{node.attr}", node.lineno))
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
            node.body = []
        self.generic_visit(node)
