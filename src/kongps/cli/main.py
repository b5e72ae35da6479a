"""The ``kongps`` command: finds the module of a command and runs it.

Only that module is imported: Kong waits for ``kongps dump`` at each of its starts, and what dump
takes is mostly the time of its imports.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from kongps.cli.common import COMMANDS, USAGE, guarded, version

__all__ = ["main"]

OLDER_FLAGS_HELP = """\
without a command, kongps takes the flags of go-pluginserver and kong-python-pluginserver:
  kongps -kong-prefix PREFIX -plugins-directory DIR [-dump-plugin-info NAME | -dump-all-plugins]
`kongps compatible --help` lists them; `kongps COMMAND --help` lists the flags of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    :param arguments: without the program's name; those of the process by default.
    :returns: the exit code: 0 fine, 2 wrong usage, 1 anything else.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in COMMANDS:
        module = importlib.import_module(f"kongps.cli.{first}")
        return int(module.main(words[1:]))
    older_flags = first.startswith("-") and first not in ("-h", "--help", "--version")
    if older_flags or first == "compatible":
        from kongps.cli import legacy

        return legacy.main(words if older_flags else words[1:])
    parser = _parser()
    parser.parse_args(words)  # ends the process, unless there are no words
    parser.print_help(sys.stderr)
    return USAGE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kongps",
        description="A plugin server for Kong Gateway: Python, Cython and native plugins.",
        epilog=OLDER_FLAGS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, help in COMMANDS.items():
        commands.add_parser(name, help=help)
    return parser
