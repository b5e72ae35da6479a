"""The flags of go-pluginserver and kong-python-pluginserver; ``kongps compatible`` lists them."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from kongps import log
from kongps._version import __version__
from kongps.cli import common
from kongps.cli.dump import dump, dump_one

__all__ = ["main"]

# What Kong 2.0 - 2.2 always connect to, below the prefix.
GO_SOCKET_NAME = "go_pluginserver.sock"

# Where kong-python-pluginserver listens below the prefix; a kong.conf written for it names this.
PYTHON_SOCKET_NAME = "python_pluginserver.sock"


def main(words: Sequence[str]) -> int:
    """Serves, or dumps, as the older servers do."""
    options = _parser().parse_args(words)
    if options.go_version:
        # Kong 2.0 - 2.2 report what stands behind "go" on the last line.
        print(f"Version: {__version__}")
        print(f"Runtime Version: go0 ({common.version()})")
        return common.OK
    settings = common.older_settings(options)
    common.require(settings, "plugins_directory")
    if options.dump_plugin_info is not None:
        return dump_one(settings, options.dump_plugin_info)
    if options.dump_all_plugins:
        return dump(settings, [], "msgpack")
    socket = os.path.join(options.prefix, options.socket_name or GO_SOCKET_NAME)
    settings = replace(settings, socket=socket)
    if options.socket_name is None:
        second = os.path.join(options.prefix, PYTHON_SOCKET_NAME)
        settings = replace(settings, second_socket=second)
    if options.multiprocessing or options.gevent:
        log.set_up(settings.log_level, settings.log_format)
        logging.getLogger("kongps").info("-m and -g have no effect: handlers run in greenlets")
    from kongps.cli.serve import serve

    return serve(settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kongps",
        description="Takes the flags of go-pluginserver and of kong-python-pluginserver, so that "
        "a kong.conf written for one of them needs only another path.",
        allow_abbrev=False,
        formatter_class=common.HELP_FORMATTER,
    )
    common.add_prefix(parser)
    parser.add_argument(
        "-d",
        "--plugins-directory",
        "-plugins-directory",
        dest="plugins_directory",
        metavar="DIR",
        help="where the plugins are",
    )
    parser.add_argument(
        "--socket-name",
        help=f"the socket's name below the prefix (default: {GO_SOCKET_NAME}, and "
        f"{PYTHON_SOCKET_NAME} too)",
    )
    parser.add_argument(
        "--dump-plugin-info",
        "-dump-plugin-info",
        metavar="NAME",
        help="print what Kong asks about a plugin, as MessagePack",
    )
    parser.add_argument(
        "--dump-all-plugins",
        "-dump-all-plugins",
        action="store_true",
        help="print what Kong asks about every plugin, as JSON",
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=1, help="log what helps in debugging too"
    )
    parser.add_argument(
        "-version",
        dest="go_version",
        action="store_true",
        help="print the versions as go-pluginserver does",
    )
    parser.add_argument("--version", action="version", version=common.version())
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("-m", "--multiprocessing", action="store_true", help="accepted, no effect")
    modes.add_argument("-g", "--gevent", action="store_true", help="accepted, no effect")
    common.add_serving(parser, without=("plugins_directory", "socket"))
    return parser
