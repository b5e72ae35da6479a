"""``kongps conf``: prints the lines of kong.conf that connect a Kong to this server."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kongps.cli.common import FAILED, OK, add_settings, command_parser, require, settings_of
from kongps.cli.dump import load
from kongps.cli.kong_conf_lines import kong_conf_lines
from kongps.settings import DEFAULT_PREFIX
from kongps.stdio import stdout_kept_clean

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    parser = command_parser("conf")
    add_settings(parser, "plugins_directory", "socket", "allow_unsafe_plugins")
    parser.add_argument(
        "--kong", metavar="VERSION", default="3.9", help="Kong's version (default: %(default)s)"
    )
    parser.add_argument(
        "--prefix",
        default=DEFAULT_PREFIX,
        help="Kong's prefix, where the socket goes without --socket (default: %(default)s)",
    )
    options = parser.parse_args(words)
    settings = settings_of(options)
    require(settings, "plugins_directory")
    with stdout_kept_clean():
        plugins, errors = load(settings)
    lines = kong_conf_lines(
        [plugin.name for plugin in plugins],
        kong=options.kong,
        directory=settings.plugins_directory,
        socket=settings.socket or os.path.join(options.prefix, "kongps.sock"),
    )
    print("\n".join(lines))
    return FAILED if errors else OK
