"""``kongps serve``: serves plugins to Kong on a unix socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kongps import log
from kongps.cli.common import OK, add_serving, command_parser, require, settings_of
from kongps.stdio import print_at_once, stdout_kept_clean

if TYPE_CHECKING:
    from kongps.plugins.plugin import Plugin
    from kongps.settings import Settings

__all__ = ["main", "serve"]


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    parser = command_parser("serve")
    add_serving(parser)
    settings = settings_of(parser.parse_args(words))
    require(settings, "plugins_directory", "socket")
    return serve(settings)


def serve(settings: Settings, plugins: dict[str, Plugin] | None = None) -> int:
    """Serves until the server is stopped.

    :param plugins: the plugins by name; those of the plugins directory when None.
    :returns: the exit code.
    """
    log.set_up(settings.log_level, settings.log_format)
    if settings.workers > 1 or settings.reload:
        from kongps.workers.supervisor import Supervisor

        return Supervisor(settings, plugins).run()
    from kongps.server.server import Server

    with stdout_kept_clean():
        server = Server(settings, plugins)
    print_at_once()
    server.run()
    return OK
