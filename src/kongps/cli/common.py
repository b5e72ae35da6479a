"""What the commands share: their names, their parsers, and settings from flags."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import Any, Callable

from kongps._version import __version__
from kongps.errors import KongpsError, UsageError
from kongps.settings import DEFAULT_PREFIX, SETTINGS, Setting, Settings, from_environment

OK, FAILED, USAGE = 0, 1, 2

# The commands with what each does. Each is a module of this package, whose `main` takes the
# command's words and returns the exit code.
COMMANDS = {
    "serve": "serve plugins to Kong on a unix socket",
    "dump": "print what Kong asks about the plugins (the _query_cmd)",
    "conf": "print the lines for kong.conf",
    "build": "compile a plugin: .py, .pyx or a package with Cython, .c, .cpp or .rs to a native "
    "one",
    "rebuild": "compile the plugins of a directory again that do not match what is running",
    "doctor": "look for what keeps kongps, its plugins or a Kong that uses them from running",
    "run": "serve the plugin of one file, which need not be in a plugins directory",
    "demo": "serve the example plugins to a stand-in for Kong and show what happens",
}

# Of a fixed width: argparse makes a formatter for each flag, which would import shutil and all the
# modules for compression to find the terminal's width. That is a twentieth of the time of a dump.
HELP_FORMATTER = partial(argparse.HelpFormatter, width=80)

ENVIRONMENT_HELP = """\
Environment variables give the settings of flags that are left out: KONGPS_LOG_LEVEL stands for
--log-level, and so on."""


def guarded(run: Callable[[], int]) -> int:
    """Runs a command; what it raises becomes an exit code, and one line on stderr.

    :param run: the command, returning its exit code.
    """
    try:
        return run()
    except KongpsError as error:
        print(f"kongps: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:  # the reader of the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except SystemExit as end:  # argparse has printed why
        return end.code if isinstance(end.code, int) else FAILED


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command.

    :param name: one of ``COMMANDS``.
    """
    help = COMMANDS[name]
    return argparse.ArgumentParser(
        prog=f"kongps {name}",
        description=f"{help[0].upper()}{help[1:]}.",
        allow_abbrev=False,
        formatter_class=HELP_FORMATTER,
    )


def add_settings(parser: argparse.ArgumentParser, *names: str) -> None:
    """Adds the flags of settings; a flag that is not given leaves None.

    :param names: the settings.
    """
    parser.epilog = ENVIRONMENT_HELP
    for name in names:
        _add_flag(parser, SETTINGS[name])


def add_serving(parser: argparse.ArgumentParser, *, without: tuple[str, ...] = ()) -> None:
    """Adds the flags of a server.

    :param without: the settings whose flags the command has itself, or does without.
    """
    flags = [each.name for each in SETTINGS.values() if each.flag and each.name not in without]
    add_settings(parser, *flags)


def _add_flag(parser: argparse.ArgumentParser, setting: Setting) -> None:
    unit = setting.unit
    # argparse formats help texts with %.
    help = setting.help.replace("%", "%%")
    if unit.negatable:
        parser.add_argument(
            setting.flag_name, action=argparse.BooleanOptionalAction, default=None, help=help
        )
    elif not unit.metavar:
        parser.add_argument(setting.flag_name, action="store_const", const=True, help=help)
    else:
        if setting.default_text:
            help += f" (default: {setting.default_text})"
        parser.add_argument(
            setting.flag_name, metavar=unit.metavar, type=_parser_of(setting), help=help
        )


def _parser_of(setting: Setting) -> Callable[[str], Any]:
    """Reads a value for argparse, which shows the text of an ArgumentTypeError."""

    def parse(text: str) -> Any:
        try:
            return setting.unit.parse(text)
        except ValueError:
            expected = setting.unit.expected
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}") from None

    return parse


def add_prefix(parser: argparse.ArgumentParser) -> None:
    """Adds Kong's prefix, by each of the names that the older servers have for the flag."""
    parser.add_argument(
        "-p",
        "--kong-prefix",
        "-kong-prefix",
        dest="prefix",
        metavar="PREFIX",
        default=DEFAULT_PREFIX,
        help="Kong's prefix, where the socket goes (default: %(default)s)",
    )


def settings_of(options: argparse.Namespace, **defaults: Any) -> Settings:
    """Settings from flags, else from the environment, else `defaults`, else the usual ones.

    :raises UsageError: for an environment variable with a wrong value.
    """
    chosen = {**defaults, **from_environment()}
    for name in SETTINGS:
        value = getattr(options, name, None)
        if value is not None:
            chosen[name] = value
    return Settings(**chosen)


def older_settings(options: argparse.Namespace) -> Settings:
    """Settings from the flags of an older server: with -v, debug logs; ends with Kong."""
    if options.verbose > 1 and options.log_level is None:
        options.log_level = "debug"
    return settings_of(options, parent_watch=True)


def require(settings: Settings, *names: str) -> None:
    """Raises a UsageError when one of these settings is empty."""
    for name in names:
        if not getattr(settings, name):
            setting = SETTINGS[name]
            raise UsageError(f"give {setting.flag_name}, or set {setting.variable}")


def version() -> str:
    """What ``--version`` prints."""
    import platform  # seldom needed, and a dump does without

    return f"kongps {__version__} ({platform.python_implementation()} {platform.python_version()})"
