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
from dataclasses import replace
from types import ModuleType

from kongps.cli.common import OK, USAGE, add_prefix, add_serving, guarded, older_settings, version
from kongps.cli.dump import answer
from kongps.cli.serve import serve
from kongps.errors import ServerError
from kongps.kong_pdk import shim as kong_pdk_shim
from kongps.plugins.loader import from_object
from kongps.plugins.trust import refused_file
from kongps.settings import SETTINGS, from_environment

__all__ = ["main", "run", "run_file", "serve_module"]

# Kong expects NAME.socket below its prefix; the servers of kong-python-pdk open NAME.sock.
SOCKET_SUFFIX = ".socket"
DEDICATED_SOCKET_SUFFIX = ".sock"

# Whether a file that is run by `run_file` has served itself.
_served: list[bool] = []


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: kongps run FILE [-kong-prefix PREFIX] [--dump] [FLAG…]", file=sys.stderr)
        return OK if words else USAGE
    return run_file(words[0], words[1:])


def run(arguments: Sequence[str] | None = None) -> int:
    """Serves the plugin of the file that is run, or prints what Kong asks about it.

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
    path = getattr(module, "__file__", None) or module.__name__
    name = os.path.splitext(os.path.basename(path))[0]
    words = sys.argv[1:] if arguments is None else arguments
    return guarded(lambda: _run(module, name, name + SOCKET_SUFFIX, "protobuf", words))


def serve_dedicated(module: ModuleType) -> int:
    """Serves the plugin of a module as kong-python-pdk's ``start_dedicated_server`` does.

    :param module: the module, which has the plugin's name.
    :returns: the exit code.
    """
    name = module.__name__
    return _run(module, name, name + DEDICATED_SOCKET_SUFFIX, "msgpack", sys.argv[1:])


def run_file(path: str, arguments: Sequence[str]) -> int:
    """Runs a plugin file as a program, and serves its plugin unless it does so itself.

    :param path: the file.
    :param arguments: the flags for it.
    :returns: the exit code.
    :raises ServerError: when there is no such file, or users who are not trusted can write it.
    """
    if not os.path.isfile(path):
        raise ServerError(f"there is no file {path}")
    unsafe = SETTINGS["allow_unsafe_plugins"]
    allowed = unsafe.flag_name in arguments or from_environment().get(unsafe.name)
    reason = None if allowed else refused_file(path)
    if reason is not None:
        raise ServerError(reason)
    kong_pdk_shim.install(serve_dedicated)
    sys.argv = [path, *arguments]
    _served.clear()
    attributes = runpy.run_path(path, run_name="__main__")
    if _served:
        return OK
    module = ModuleType("__main__")
    vars(module).update(attributes)
    return serve_module(module, arguments)


def _run(
    module: ModuleType, name: str, socket_name: str, protocol: str, words: Sequence[str]
) -> int:
    options = _parser(name, socket_name).parse_args(words)
    plugin = from_object(module, name=name, lua_style=not options.no_lua_style)
    _served.append(True)
    socket = os.path.join(options.prefix, options.socket_name)
    if options.dump:
        print(answer([plugin], protocol, socket))
        return OK
    settings = older_settings(options)
    return serve(replace(settings, socket=socket, plugins_directory=""), {plugin.name: plugin})


def _parser(name: str, socket_name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=name, description=f"Serves the Kong plugin {name}.", allow_abbrev=False
    )
    add_prefix(parser)
    parser.add_argument(
        "--socket-name",
        default=socket_name,
        help="the socket's name below the prefix (default: %(default)s)",
    )
    parser.add_argument(
        "-dump", "--dump", action="store_true", help="print what Kong asks about the plugin"
    )
    parser.add_argument("-v", "--verbose", action="count", default=1, help="log more")
    parser.add_argument("--version", "-version", action="version", version=version())
    parser.add_argument("-m", "--multiprocessing", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-g", "--gevent", action="store_true", help=argparse.SUPPRESS)
    add_serving(parser, without=("plugins_directory", "socket"))
    return parser
