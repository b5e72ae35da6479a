"""The ``kongps`` command: its own subcommands, and the flags of the servers it replaces.

What a command does is imported when it runs, and argparse only for a command line that
:mod:`kongps.cli.flags` does not read: ``dump`` is on the path of every start of Kong, and takes as
long as its imports do. ``tests/test_dump_imports.py`` says what it does without.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable

from kongps._version import __version__
from kongps.cli import flags
from kongps.data import Data
from kongps.errors import KongpsError, PluginError, ServerError, UsageError
from kongps.settings import (
    HANDLERS,
    LEAST_MAX_MESSAGE,
    LOG_FORMATS,
    LOG_LEVELS,
    MOST_MAX_MESSAGE,
    ON_ERROR,
    Settings,
    from_environment,
    parse_count,
    parse_message_size,
    parse_mode,
    parse_seconds,
    parse_workers,
)
from kongps.stdio import print_at_once, redirect_stdout, stdout_kept_clean, write_all
from kongps.when_imported import when_imported

if TYPE_CHECKING:
    import argparse

    from kongps.cli.flags import TakesFlags
    from kongps.plugins.plugin import Plugin

OK, FAILED, USAGE = 0, 1, 2

# Where Kong lives unless told otherwise; the default of both older servers.
DEFAULT_PREFIX = "/usr/local/kong"

# What Kong 2.0 - 2.2 always connect to, below the prefix.
GO_SOCKET_NAME = "go_pluginserver.sock"

# Where kong-python-pluginserver listens below the prefix; a kong.conf written for it names this.
PYTHON_SOCKET_NAME = "python_pluginserver.sock"

PROTOCOLS = ("protobuf", "msgpack")

UNSAFE_FLAG = "--allow-unsafe-plugins"

COMPATIBLE_HELP = """\
without a subcommand, kongps takes the flags of go-pluginserver and kong-python-pluginserver:
  kongps -kong-prefix PREFIX -plugins-directory DIR [-dump-plugin-info NAME | -dump-all-plugins]
`kongps compatible --help` lists them.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    :param arguments: without the program's name; those of the process by default.
    :returns: the exit code: 0 fine, 2 wrong usage, 1 anything else.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _run(words))


def guarded(run: Callable[[], int]) -> int:
    """Runs a command; what it raises becomes an exit code, and one line on stderr.

    :param run: the command, returning its exit code.
    """
    try:
        return run()
    except UsageError as error:
        print(f"kongps: {error}", file=sys.stderr)
        return USAGE
    except KongpsError as error:
        print(f"kongps: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:  # whoever reads our output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except SystemExit as end:  # argparse has said why
        return end.code if isinstance(end.code, int) else FAILED


def _run(words: list[str]) -> int:
    if words and words[0] == "compatible":
        return _compatible(words[1:])
    if words and words[0] == "demo":
        return _demo(words[1:])
    if words and words[0] == "run":
        return _run_file(words[1:])
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        return _compatible(words)
    if words and words[0] in COMMANDS:
        command = COMMANDS[words[0]]
        plain = flags.read(command.declare, words[1:])
        if plain is not None:
            return command.run(plain)
    parser = _parser()
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help(sys.stderr)
        return USAGE
    run: Callable[[Any], int] = options.run
    return run(options)


# --- the subcommands ---------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    import argparse

    from kongps.cli import tools

    parser = argparse.ArgumentParser(
        prog="kongps",
        description="A plugin server for Kong Gateway: Python, Cython and native plugins.",
        epilog=COMPATIBLE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.declare(tools.add_command(commands, name, command.run, command.help))
    tools.add_commands(commands)

    # These have flags of their own and are run before this parser; here they are for the help.
    commands.add_parser("run", help="run a plugin file that serves itself: kongps run FILE [FLAG…]")
    commands.add_parser(
        "demo", help="serve the example plugins to a stand-in for Kong and show what happens"
    )
    return parser


def _add_serve(parser: TakesFlags) -> None:
    _add_directory(parser)
    add_serving(parser, socket=True)


def _add_dump(parser: TakesFlags) -> None:
    _add_directory(parser)
    parser.add_argument("names", nargs="*", metavar="NAME", help="plugins to print; default: all")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="protobuf",
        help="what Kong is to speak: protobuf from 2.4 on, msgpack before (default: %(default)s)",
    )
    parser.add_argument("--socket", metavar="PATH", help="the socket that `kongps serve` uses")
    _add_lua_style(parser)
    _add_unsafe(parser)


def _add_conf(parser: TakesFlags) -> None:
    _add_directory(parser)
    _add_unsafe(parser)
    parser.add_argument("--socket", metavar="PATH", help="the socket that `kongps serve` is to use")
    parser.add_argument(
        "--kong", metavar="VERSION", default="3.9", help="Kong's version (default: %(default)s)"
    )
    parser.add_argument(
        "--prefix",
        default=DEFAULT_PREFIX,
        help="Kong's prefix, for the socket's default place (default: %(default)s)",
    )


def _add_directory(parser: TakesFlags) -> None:
    parser.add_argument(
        "--plugins-directory",
        metavar="DIR",
        help="where the plugins are; environment: KONGPS_PLUGINS_DIRECTORY",
    )


def _add_unsafe(parser: TakesFlags) -> None:
    parser.add_argument(
        UNSAFE_FLAG,
        action="store_const",
        const=True,
        help="load plugins also where others than root and this user may write them",
    )


def _add_lua_style(parser: TakesFlags) -> None:
    parser.add_argument(
        "--no-lua-style",
        action="store_const",
        const=True,
        help="have PDK calls of plugins in kong-python-pdk's layout return the value and raise "
        "errors, instead of returning (value, err)",
    )


def add_serving(parser: TakesFlags, *, socket: bool) -> None:
    """Adds the flags of a server.

    :param socket: whether the socket's path is one of them.
    """

    def option(flag: str, **details: Any) -> None:
        name = flag.lstrip("-").replace("-", "_")
        default = getattr(Settings, name, None)
        shown = f"{default:04o}" if name == "socket_mode" else default
        if default not in (None, "", False):
            details["help"] += f" (default: {shown})"
        parser.add_argument(flag, **details)

    if socket:
        option("--socket", metavar="PATH", help="the unix socket that Kong connects to")
    option("--socket-mode", metavar="MODE", type=_MODE, help="the socket's permissions")
    option("--listen-queue-size", metavar="N", type=_COUNT, help="connections that may wait")
    option(
        "--shutdown-timeout",
        metavar="SECONDS",
        type=_SECONDS,
        help="time for running events to finish after SIGTERM",
    )
    option(
        "--event-timeout",
        metavar="SECONDS",
        type=_SECONDS,
        help="time without a step from Kong after which an event is ended",
    )
    parser.add_argument(
        "--parent-watch",
        action=_on_off,
        default=None,
        help="end when the process that started this one is gone",
    )
    parser.add_argument(
        "--no-pipelining",
        action="store_const",
        const=True,
        help="wait for Kong's answer to every PDK call, also to one without a result",
    )
    option("--on-error", choices=ON_ERROR, metavar="|".join(ON_ERROR), help="end a request with a "
           "500 when a handler fails, or let it through; a plugin may say otherwise")  # fmt: skip
    parser.add_argument(
        "--no-instance-store",
        action="store_const",
        const=True,
        help="do not keep instances in a database beside the socket: after a restart, Kong has "
        "to start them anew",
    )
    option(
        "--instance-ttl",
        metavar="SECONDS",
        type=_SECONDS,
        help="time without an event after which an instance is closed, to be started again when "
        "it is used; 0: never",
    )
    option("--handlers", choices=HANDLERS, metavar="|".join(HANDLERS), help="where plain handlers "
           "run: on the server's own thread, the fastest, until one blocks; always there; or "
           "in a pool of threads; a plugin may say otherwise")  # fmt: skip
    option("--handler-threads", metavar="N", type=_COUNT, help="most threads that run handlers")
    option(
        "--block-threshold",
        metavar="SECONDS",
        type=_SECONDS,
        help="time for which a handler may hold the server before it runs in threads; 0: any",
    )
    option(
        "--handler-timeout",
        metavar="SECONDS",
        type=_SECONDS,
        help="time after which an event fails whose handler has not ended, below the 60 s that "
        "Kong waits; 0: never",
    )
    option("--max-connections", metavar="N", type=_COUNT, help="most connections; others wait")
    option("--max-events", metavar="N", type=_COUNT, help="most events under way; one more fails")
    option(
        "--max-message",
        metavar="BYTES",
        type=_MESSAGE_SIZE,
        help="longest message taken; with a longer one its connection is closed",
    )
    option(
        "--max-instances",
        metavar="N",
        type=_COUNT,
        help="most instances; for one more, the one used least recently is closed",
    )
    option(
        "--max-unfinished",
        metavar="BYTES",
        type=_COUNT,
        help="bytes of half-received messages of all connections; with more, the connection that "
        "holds most is closed",
    )
    option(
        "--workers",
        metavar="N",
        type=_WORKERS,
        help="processes that run handlers; auto: one for each core",
    )
    parser.add_argument(
        "--reload",
        action="store_const",
        const=True,
        help="load the plugins anew when a file in their directory changes (needs watchfiles)",
    )
    _add_lua_style(parser)
    _add_unsafe(parser)
    option("--log-level", metavar="LEVEL", choices=LOG_LEVELS, help="least level to log: "
           + ", ".join(LOG_LEVELS))  # fmt: skip
    option("--log-format", metavar="FORMAT", choices=LOG_FORMATS, help="text or json")


def _on_off(**details: Any) -> argparse.Action:
    """The action of a flag that is there with ``--no-`` as well."""
    from argparse import BooleanOptionalAction

    return BooleanOptionalAction(**details)


def settings_of(options: object, **defaults: Any) -> Settings:
    """Settings from flags, else the environment, else `defaults`, else the usual ones."""
    chosen = {**defaults, **from_environment()}
    for name in Settings._fields:
        value = getattr(options, name, None)
        if value is not None:
            chosen[name] = value
    settings = Settings(**chosen)
    for name, allowed in (
        ("log_level", LOG_LEVELS), ("log_format", LOG_FORMATS), ("on_error", ON_ERROR),
        ("handlers", HANDLERS),
    ):  # fmt: skip
        if getattr(settings, name) not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}")
    return settings


def _type(parse: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """`parse` for argparse, which shows the text of an ArgumentTypeError."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            import argparse

            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None

    return parsed


_MODE = _type(parse_mode, "a set of permissions in octal, such as 0660")
_SECONDS = _type(parse_seconds, "a number of seconds, 0 or more")
_COUNT = _type(parse_count, "a whole number, 1 or more")
_MESSAGE_SIZE = _type(
    parse_message_size, f"a whole number, {LEAST_MAX_MESSAGE} to {MOST_MAX_MESSAGE}"
)
_WORKERS = _type(parse_workers, "a number of workers, 1 to 64, or auto")


def _required(settings: Settings, *names: str) -> None:
    for name in names:
        if not getattr(settings, name):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"give {flag}, or set KONGPS_{name.upper()}")


def _serve(options: Any) -> int:
    settings = settings_of(options)
    _required(settings, "plugins_directory", "socket")
    return _run_server(settings)


def _run_server(settings: Settings) -> int:
    from kongps import log

    log.set_up(settings.log_level, settings.log_format)
    if settings.workers > 1 or settings.reload:
        from kongps.workers.supervisor import Supervisor

        return Supervisor(settings).run()
    from kongps.server.server import Server

    with stdout_kept_clean():
        server = Server(settings)
    print_at_once()
    server.run()
    return OK


def _run_file(words: list[str]) -> int:
    from kongps.cli.run import run_file

    if not words or words[0] in ("-h", "--help"):
        print("usage: kongps run FILE [-kong-prefix PREFIX] [--dump] [FLAG…]", file=sys.stderr)
        return OK if words else USAGE
    return run_file(words[0], words[1:])


def _dump(options: Any) -> int:
    settings = settings_of(options)
    _required(settings, "plugins_directory")
    return _dump_all(settings, options.names, options.protocol)


def _dump_all(settings: Settings, names: Sequence[str], protocol: str) -> int:
    kept = redirect_stdout()
    plugins, errors = _load(settings, names)
    _write_last(kept, dumped(plugins, protocol, settings.socket).encode() + b"\n")
    return FAILED if errors else OK


def dumped(plugins: Sequence[Plugin], protocol: str, socket: str) -> str:
    """The answer to Kong's query.

    :param plugins: the plugins to tell of.
    :param protocol: one of ``PROTOCOLS``; before 2.4, Kong knows MsgPack:1 alone and wants an
        array of plugins.
    :param socket: the path of the server's socket.
    :returns: JSON.
    """
    from kongps.cli.json_text import json_text

    infos = [plugin.info() for plugin in plugins]
    if protocol == "msgpack":
        return json_text(infos)
    return json_text({"Protocol": "ProtoBuf:1", "SocketPath": socket, "Plugins": infos})


def _load(settings: Settings, names: Sequence[str] = ()) -> tuple[list[Plugin], list[PluginError]]:
    """Loads plugins, and says on stderr which could not be."""
    from kongps.plugins.loader import load_directory, load_plugin

    when_imported("logging", lambda: _log_warnings(settings.log_format))
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


def _log_warnings(format: str) -> None:
    from kongps import log

    log.set_up("warning", format)


def _conf(options: Any) -> int:
    from kongps.cli.conf import kong_conf

    settings = settings_of(options)
    _required(settings, "plugins_directory")
    with stdout_kept_clean():
        plugins, errors = _load(settings)
    print(
        kong_conf(
            [plugin.name for plugin in plugins],
            kong=options.kong,
            directory=settings.plugins_directory,
            socket=settings.socket or os.path.join(options.prefix, "kongps.sock"),
        ),
        end="",
    )
    return FAILED if errors else OK


def _demo(words: list[str]) -> int:
    from kongps.cli.demo import main as demo

    return demo(words)


def version() -> str:
    """What ``--version`` prints."""
    import platform

    return f"kongps {__version__} ({platform.python_implementation()} {platform.python_version()})"


class Command(Data):
    """A subcommand: what carries it out, what declares its flags, what it does in one line."""

    run: Callable[[Any], int]
    declare: Callable[[TakesFlags], None]
    help: str


COMMANDS = {
    "serve": Command(_serve, _add_serve, "serve plugins to Kong on a unix socket"),
    "dump": Command(
        _dump, _add_dump, "print what Kong needs to know of the plugins (the _query_cmd)"
    ),
    "conf": Command(_conf, _add_conf, "print the settings for kong.conf"),
}


# --- the flags of go-pluginserver and kong-python-pluginserver ---------------------------------


def _compatible_parser() -> argparse.ArgumentParser:
    import argparse

    parser = argparse.ArgumentParser(
        prog="kongps",
        description="Takes the flags of go-pluginserver and of kong-python-pluginserver, so that "
        "a kong.conf written for one of them needs only another path.",
        allow_abbrev=False,
    )
    _add_compatible(parser, version())
    return parser


def _add_compatible(parser: TakesFlags, version_text: str = "") -> None:
    parser.add_argument(
        "-p", "--kong-prefix", "-kong-prefix", dest="prefix", metavar="PREFIX",
        default=DEFAULT_PREFIX, help="Kong's prefix, where the socket goes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-d", "--plugins-directory", "-plugins-directory", dest="plugins_directory",
        metavar="DIR", help="where the plugins are",
    )  # fmt: skip
    parser.add_argument(
        "--socket-name",
        help=f"the socket's name below the prefix (default: {GO_SOCKET_NAME}, and "
        f"{PYTHON_SOCKET_NAME} too)",
    )  # fmt: skip
    parser.add_argument(
        "--dump-plugin-info", "-dump-plugin-info", metavar="NAME",
        help="print what Kong needs to know of a plugin, as MessagePack",
    )  # fmt: skip
    parser.add_argument(
        "--dump-all-plugins", "-dump-all-plugins", action="store_true",
        help="print what Kong needs to know of every plugin, as JSON",
    )  # fmt: skip
    parser.add_argument(
        "-v", "--verbose", action="count", default=1, help="log what helps in debugging too"
    )
    parser.add_argument(
        "-version", dest="go_version", action="store_true",
        help="print the versions as go-pluginserver does",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=version_text)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument(
        "-m", "--multiprocessing", action="store_true", help="taken and without effect"
    )
    modes.add_argument("-g", "--gevent", action="store_true", help="taken and without effect")
    add_serving(parser, socket=False)


def _compatible(words: list[str]) -> int:
    options: Any = flags.read(_add_compatible, words) or _compatible_parser().parse_args(words)
    if options.go_version:
        # Kong 2.0 - 2.2 report what stands behind "go" on the last line.
        print(f"Version: {__version__}")
        print(f"Runtime Version: go0 ({version()})")
        return OK
    if options.verbose > 1 and options.log_level is None:
        options.log_level = "debug"
    settings = settings_of(options, parent_watch=True)
    _required(settings, "plugins_directory")
    if options.dump_plugin_info is not None:
        return _dump_one(settings, options.dump_plugin_info)
    if options.dump_all_plugins:
        return _dump_all(settings, [], "msgpack")
    settings.socket = os.path.join(options.prefix, options.socket_name or GO_SOCKET_NAME)
    if options.socket_name is None:
        settings.second_socket = os.path.join(options.prefix, PYTHON_SOCKET_NAME)
    if options.multiprocessing or options.gevent:
        _tell_of_modes(settings)
    return _run_server(settings)


def _tell_of_modes(settings: Settings) -> None:
    import logging

    from kongps import log

    log.set_up(settings.log_level, settings.log_format)
    logging.getLogger("kongps").info("-m and -g have no effect: handlers run in greenlets")


def _write_last(kept: int, data: bytes) -> None:
    write_all(kept, data)
    # The process has done its work. Looking for garbage once more, in all that was imported, would
    # take it a tenth of its time.
    gc.freeze()


def _dump_one(settings: Settings, name: str) -> int:
    kept = redirect_stdout()
    plugins, _ = _load(settings, [name])
    if not plugins:
        return FAILED
    import msgpack

    _write_last(kept, msgpack.packb(plugins[0].info()))
    return OK
