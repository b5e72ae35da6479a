"""``kongps rebuild``: compiles again what does not match what is running."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kongps.cli.common import FAILED, OK, command_parser

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Runs the command."""
    parser = command_parser("rebuild")
    parser.add_argument("directory", metavar="DIR", help="the plugins directory")
    parser.add_argument(
        "--check", action="store_true", help="only report; exit code 1 when one does not match"
    )
    options = parser.parse_args(words)

    from kongps.plugins.rebuild import rebuild

    results = rebuild(options.directory, check=options.check, progress=partial(print, flush=True))
    if not results:
        print(f"there is no compiled plugin in {options.directory}")
    if options.check:
        return FAILED if any(each.problem is not None for each in results) else OK
    return FAILED if any(each.failure is not None for each in results) else OK
