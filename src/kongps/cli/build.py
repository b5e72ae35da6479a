"""``kongps build``: compiles plugins."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial

from kongps.cli.common import OK, command_parser
from kongps.settings import SETTINGS

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    variable = SETTINGS["plugins_directory"].variable
    parser = command_parser("build")
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a file or a package directory"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        help="the plugins directory to put it in (default: the one that the environment variable "
        f"{variable} names, else the source's own)",
    )
    parser.add_argument(
        "--annotate", action="store_true", help="also write Cython's report, HTML, beside it"
    )
    parser.add_argument(
        "--python", metavar="PATH", help="the interpreter to compile for (default: this one)"
    )
    options = parser.parse_args(words)

    from kongps.compiled.build import build

    for source in options.sources:
        build(
            source,
            output=options.output or os.environ.get(variable),
            annotate=options.annotate,
            python=options.python,
            progress=partial(print, flush=True),
        )
    return OK
