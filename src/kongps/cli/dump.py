"""``kongps dump``: answers Kong's query for plugins.

Kong runs it at each of its starts and waits for it, so it imports little.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kongps import log
from kongps.cli.common import FAILED, OK, add_settings, command_parser, require, settings_of
from kongps.errors import PluginError, ServerError
from kongps.stdio import redirect_stdout, write_all

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

__all__ = ["PROTOCOLS", "answer", "dump", "dump_one", "load", "main"]

PROTOCOLS = ("protobuf", "msgpack")


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    parser = command_parser("dump")
    parser.add_argument("names", nargs="*", metavar="NAME", help="plugins to print; default: all")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="protobuf",
        help="the protocol for Kong: protobuf from 2.4 on, msgpack before (default: %(default)s)",
    )
    parser.add_argument(  # for `kongps doctor`: to find that out may import what serving needs
        "--handlers", action="store_true", help=argparse.SUPPRESS
    )
    add_settings(parser, "plugins_directory", "socket", "no_lua_style", "allow_unsafe_plugins")
    options = parser.parse_args(words)
    settings = settings_of(options)
    require(settings, "plugins_directory")
    return dump(settings, options.names, options.protocol, options.handlers)


def dump(settings: Settings, names: Sequence[str], protocol: str, handlers: bool = False) -> int:
    """Prints the answer to Kong's query, and nothing else, on stdout.

    :param names: the plugins; all of the plugins directory when empty.
    :param protocol: one of ``PROTOCOLS``.
    :param handlers: whether to print where each plugin's handlers run too.
    :returns: the exit code.
    """
    kept = redirect_stdout()
    plugins, errors = load(settings, names)
    text = answer(plugins, protocol, settings.socket, handlers)
    _write_last(kept, text.encode() + b"\n")
    return FAILED if errors else OK


def dump_one(settings: Settings, name: str) -> int:
    """Prints one plugin as MessagePack, as Kong before 2.3 asks for it."""
    kept = redirect_stdout()
    plugins, _ = load(settings, [name])
    if not plugins:
        return FAILED
    import msgpack

    _write_last(kept, msgpack.packb(plugins[0].info()))
    return OK


def answer(plugins: Sequence[Plugin], protocol: str, socket: str, handlers: bool = False) -> str:
    """The answer to Kong's query.

    :param protocol: one of ``PROTOCOLS``; before 2.4, Kong knows MsgPack:1 alone and expects an
        array of plugins.
    :param socket: the path of the server's socket.
    :param handlers: whether to add where each plugin's handlers run, which Kong does not ask.
    :returns: JSON.
    """
    infos = [plugin.info() for plugin in plugins]
    if handlers:
        infos = [{**info, "Handlers": each.describe_where()} for info, each in zip(infos, plugins)]
    if protocol == "msgpack":
        return json.dumps(infos)
    return json.dumps({"Protocol": "ProtoBuf:1", "SocketPath": socket, "Plugins": infos})


def load(settings: Settings, names: Sequence[str] = ()) -> tuple[list[Plugin], list[PluginError]]:
    """Loads plugins, and reports on stderr those that cannot be loaded.

    :param names: the plugins; all of the plugins directory when empty.
    :raises ServerError: when the plugins directory does not exist.
    """
    from kongps.plugins.loader import load_directory, load_plugin

    log.set_up("warning", settings.log_format)
    directory = settings.plugins_directory
    if not os.path.isdir(directory):
        raise ServerError(f"the plugins directory {directory!r} does not exist")
    plugins: list[Plugin] = []
    errors: list[PluginError] = []
    how = {
        "lua_style": not settings.no_lua_style,
        "checked": not settings.allow_unsafe_plugins,
    }
    if names:
        for name in names:
            try:
                plugins.append(load_plugin(directory, name, **how))
            except PluginError as error:
                errors.append(error)
    else:
        loaded = load_directory(directory, **how)
        plugins, errors = list(loaded.plugins.values()), loaded.errors
    for broken in errors:
        print(f"kongps: {broken}", file=sys.stderr)
    return plugins, errors


def _write_last(kept: int, data: bytes) -> None:
    """Writes to what stdout was; whatever is printed later, at exit too, goes to stderr.

    :param kept: what `redirect_stdout` returned.
    """
    write_all(kept, data)
    # Garbage collection at exit, of all that was imported, would take a tenth of the time.
    gc.freeze()
