"""Where a plugin's handlers run, decided from how it is written.

``async def`` handlers run under asyncio. Plugins of kong-python-pdk's layout run in threads, as
they did there. Other plain handlers run inline, on the server's own thread, unless the plugin's
own modules import something of ``MODULES``: then in threads. ``blocking = True`` or ``False`` in
the plugin overrides the last two.

The plugin's own modules are the file that it is loaded from, its package, and the modules beside
it that these import. What they import from elsewhere is not looked into.
"""

from __future__ import annotations

import contextlib
import os
import sys
import types
from collections.abc import Container, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Optional

from kongps.plugins.plugin import Placed

if TYPE_CHECKING:
    import ast

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


class _Found(NamedTuple):
    name: str
    path: str
    line: int


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
    found = _first_use(path, module) if module is not None else None
    if found is None:
        return Placed("inline", "it uses no module that waits or needs threads")
    there = "" if found.path == path else f"{os.path.basename(found.path)}, "
    line = f" ({there}line {found.line})" if found.line else ""
    return Placed("threads", f"it uses {found.name}{line}: {MODULES[found.name]}")


def _first_use(path: str, module: types.ModuleType) -> Optional[_Found]:
    """The first thing of ``MODULES`` that a plugin's own modules use."""
    waiting, seen = [module], {module.__name__}
    while waiting:
        own = waiting.pop(0)
        file = getattr(own, "__file__", None) or path
        for name, line in _names(own, file):
            listed = _longest(name, MODULES)
            if listed is not None:
                return _Found(listed, file, line)
            used = _longest(name, sys.modules)
            if used is not None and used not in seen and _is_own(used, path, module):
                seen.add(used)
                waiting.append(sys.modules[used])
    return None


def _longest(name: str, known: Container[str]) -> Optional[str]:
    """The longest beginning of a dotted name that is known."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def _is_own(name: str, path: str, plugin: types.ModuleType) -> bool:
    """Whether a module is the plugin's: of its package, or beside it and not installed there."""
    package = plugin.__name__.rpartition(".")[0]  # such as the one that stands for the directory
    if name.startswith(f"{plugin.__name__}.") or (package and name.startswith(f"{package}.")):
        return True
    # Beside it means in the same directory: a Python with its library may lie further below.
    directory = os.path.dirname(os.path.abspath(path))
    first = name.partition(".")[0]
    return os.path.basename(directory) not in ("site-packages", "dist-packages") and getattr(
        sys.modules.get(first), "__file__", None
    ) in (os.path.join(directory, f"{first}.py"), os.path.join(directory, first, "__init__.py"))


# The names that a module uses


def _names(module: types.ModuleType, path: str) -> Iterator[tuple[str, int]]:
    """The dotted names of what a module imports and uses of that, each with its line.

    Without its source, as for a compiled module, those of its globals, with 0.
    """
    if path.endswith(".py"):
        import ast

        with contextlib.suppress(OSError, SyntaxError, ValueError):
            with open(path, "rb") as file:
                tree = ast.parse(file.read())
            return _Names(getattr(module, "__package__", None) or "").of(tree)
    return _names_of_globals(module)


class _Names:
    """Reads the names out of a module's source.

    :param package: the package that its relative imports start from.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._imported: dict[str, str] = {}  # what names of the module stand for

    def of(self, node: ast.AST) -> Iterator[tuple[str, int]]:
        """Those below a node, in the order of the lines."""
        import ast

        if isinstance(node, ast.If) and _is_for_type_checkers(node.test):
            children: Iterable[ast.AST] = node.orelse
        else:
            children = ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            for each in node.names:
                first = each.name.partition(".")[0]
                self._imported[each.asname or first] = each.name if each.asname else first
                yield each.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = self._resolved(node)
            for each in node.names:
                self._imported[each.asname or each.name] = f"{base}.{each.name}"
                yield f"{base}.{each.name}", node.lineno
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in self._imported
        ):
            yield f"{self._imported[node.value.id]}.{node.attr}", node.lineno
        for child in children:
            yield from self.of(child)

    def _resolved(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self._package.split(".")
        parts = parts[: len(parts) - node.level + 1]
        return ".".join([*parts, node.module] if node.module else parts)


def _is_for_type_checkers(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", None), getattr(test, "attr", None))


def _names_of_globals(module: types.ModuleType) -> Iterator[tuple[str, int]]:
    for value in list(vars(module).values()):
        if isinstance(value, types.ModuleType):
            name = value.__name__
        elif isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
            name = f"{value.__module__}.{value.__name__}"
        else:
            name = str(type(value).__module__)
        yield name, 0
        yield name.lstrip("_"), 0  # _queue.SimpleQueue and the like, the halves in C
