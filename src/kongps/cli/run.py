"""A plugin file that is a server of its own.

With ``if __name__ == "__main__": kongps.run()`` at its end, a file takes the flags of go-pdk's
embedded servers: ``./hello.py -kong-prefix PREFIX`` serves the plugin, ``./hello.py -dump`` prints
what Kong asks. ``kongps run FILE`` does the same for a file without such a line, and lets files
written for kong-python-pdk run where that is not installed.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from kongps import log
from kongps.cli import main as cli
from kongps.errors import ServerError
from kongps.kong_pdk import shim as kong_pdk_shim
from kongps.plugins.trust import refused_file
from kongps.settings import from_environment

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin

# What Kong expects below its prefix when it is not told: NAME.socket.
SOCKET_SUFFIX = ".socket"

# Whether a file that is run by `run_file` has served itself.
_served: list[bool] = []


def run(arguments: Sequence[str] | None = None) -> int:
    """Serves the plugin of the file that is run, or prints what Kong asks of it.

    :param arguments: the flags; those of the process by default.
    :returns: the exit code, for ``sys.exit``: 0 fine, 2 wrong usage, 1 anything else.
    """
    return serve_module(sys.modules["__main__"], arguments)


def serve_module(module: ModuleType, arguments: Sequence[str] | None = None) -> int:
    """Serves the plugin of a module as if it were a file that is run.

    :param module: the module; the plugin has the name of its file.
    :param arguments: the flags; those of the process by default.
    :returns: the exit code.
    """
    from kongps.plugins.loader import from_object

    path = getattr(module, "__file__", None) or module.__name__
    name = os.path.splitext(os.path.basename(path))[0]
    words = sys.argv[1:] if arguments is None else arguments

    def serve() -> int:
        options = _parser(name, name + SOCKET_SUFFIX).parse_args(words)
        plugin = from_object(module, name=name, lua_style=not options.no_lua_style)
        return _serve(plugin, options, "protobuf")

    return cli.guarded(serve)


def serve_dedicated(module: ModuleType) -> int:
    """Serves the plugin of a module as kong-python-pdk's ``start_dedicated_server`` does.

    :param module: the module, which has the plugin's name.
    :returns: the exit code.
    """
    from kongps.plugins.loader import from_object

    name = module.__name__
    options = _parser(name, f"{name}.sock").parse_args(sys.argv[1:])
    plugin = from_object(module, name=name, lua_style=not options.no_lua_style)
    return _serve(plugin, options, "msgpack")


def run_file(path: str, arguments: Sequence[str]) -> int:
    """Runs a plugin file as a program, and serves its plugin unless it does so itself.

    :param path: the file.
    :param arguments: the flags for it.
    :returns: the exit code.
    :raises ServerError: when there is no such file, or others may write or replace it.
    """
    if not os.path.isfile(path):
        raise ServerError(f"there is no file {path}")
    allowed = cli.UNSAFE_FLAG in arguments or from_environment().get("allow_unsafe_plugins")
    reason = None if allowed else refused_file(path)
    if reason is not None:
        raise ServerError(reason)
    kong_pdk_shim.install(serve_dedicated)
    sys.argv = [path, *arguments]
    _served.clear()
    attributes = runpy.run_path(path, run_name="__main__")
    if _served:
        return cli.OK
    module = ModuleType("__main__")
    vars(module).update(attributes)
    return serve_module(module, arguments)


def _parser(name: str, socket_name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name, description=f"Serves the Kong plugin {name}.", allow_abbrev=False
    )
    parser.add_argument(
        "-p", "--kong-prefix", "-kong-prefix", dest="prefix", metavar="PREFIX",
        default=cli.DEFAULT_PREFIX,
        help="Kong's prefix, where the socket goes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--socket-name", default=socket_name,
        help="the socket's name below the prefix (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-dump", "--dump", action="store_true", help="print what Kong needs to know of the plugin"
    )
    parser.add_argument("-v", "--verbose", action="count", default=1, help="log more")
    parser.add_argument("--version", "-version", action="version", version=cli.version())
    parser.add_argument("-m", "--multiprocessing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-g", "--gevent", action="store_true", help=argparse.SUPPRESS)
    cli.add_serving(parser, socket=False)
    return parser


def _serve(plugin: Plugin, options: argparse.Namespace, protocol: str) -> int:
    _served.append(True)
    socket = os.path.join(options.prefix, options.socket_name)
    if options.dump:
        print(cli.dumped([plugin], protocol, socket))
        return cli.OK
    if options.verbose > 1 and options.log_level is None:
        options.log_level = "debug"
    settings = cli.settings_of(options, parent_watch=True)
    settings.socket, settings.plugins_directory = socket, ""
    log.set_up(settings.log_level, settings.log_format)
    if settings.workers > 1 or settings.reload:
        from kongps.workers.supervisor import Supervisor

        return Supervisor(settings, {plugin.name: plugin}).run()
    from kongps.server.server import Server

    Server(settings, {plugin.name: plugin}).run()
    return cli.OK
