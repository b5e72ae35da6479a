"""The subcommands for those who look after plugins: ``build``, ``rebuild`` and ``doctor``."""

from __future__ import annotations

import argparse
import os
from typing import Any, Callable

OK, FAILED = 0, 1


def add_commands(commands: Any) -> None:
    """Adds the subcommands to those of the ``kongps`` command.

    :param commands: what ``add_subparsers`` returned.
    """
    build = add_command(
        commands, "build", _build,
        "compile a plugin: .py, .pyx or a package with Cython, .c, .cpp or .rs to a native one",
    )  # fmt: skip
    build.add_argument("sources", nargs="+", metavar="SOURCE", help="file or package directory")
    build.add_argument(
        "-o", "--output", metavar="DIR",
        help="the plugins directory to put it in (default: the one that KONGPS_PLUGINS_DIRECTORY "
        "names, else the source's own)",
    )  # fmt: skip
    build.add_argument(
        "--annotate", action="store_true", help="also write Cython's report, HTML, beside it"
    )
    build.add_argument(
        "--python", metavar="PATH", help="the interpreter to compile for (default: this one)"
    )

    rebuild = add_command(
        commands, "rebuild", _rebuild,
        "compile again the plugins of a directory that do not match what is running",
    )  # fmt: skip
    rebuild.add_argument("directory", metavar="DIR", help="the plugins directory")
    rebuild.add_argument(
        "--check", action="store_true", help="only report; exit code 1 when one does not match"
    )

    doctor = add_command(
        commands, "doctor", _doctor,
        "look for what keeps kongps, its plugins, or a Kong that is set up for them from running",
    )  # fmt: skip
    doctor.add_argument(
        "--plugins-directory", metavar="DIR",
        help="where the plugins are (default: the one that KONGPS_PLUGINS_DIRECTORY or the "
        "kong.conf names)",
    )  # fmt: skip
    doctor.add_argument("--kong-conf", metavar="FILE", help="the kong.conf to look at")
    doctor.add_argument(
        "--kong", metavar="VERSION", default="3.9",
        help="the version of Kong that reads it (default: %(default)s)",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="print JSON")


def add_command(
    commands: Any, name: str, run: Callable[[Any], int], help: str
) -> argparse.ArgumentParser:
    """Adds one subcommand.

    :param commands: what ``add_subparsers`` returned.
    :param run: carries it out, and returns the exit code.
    :param help: what it does, in one line.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=help[0].upper() + help[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def _say(line: str) -> None:
    print(line, flush=True)


def _build(options: argparse.Namespace) -> int:
    from kongps.compiled.build import build

    output = options.output or os.environ.get("KONGPS_PLUGINS_DIRECTORY")
    for source in options.sources:
        build(
            source, output=output, annotate=options.annotate, python=options.python, progress=_say
        )
    return OK


def _rebuild(options: argparse.Namespace) -> int:
    from kongps.compiled.build import rebuild

    results = rebuild(options.directory, check=options.check, progress=_say)
    if not results:
        _say(f"there is no compiled plugin in {options.directory}")
    if options.check:
        return FAILED if any(each.problem is not None for each in results) else OK
    return FAILED if any(each.failure is not None for each in results) else OK


def _doctor(options: argparse.Namespace) -> int:
    from kongps.cli.doctor import examine_all

    report = examine_all(
        directory=options.plugins_directory or os.environ.get("KONGPS_PLUGINS_DIRECTORY"),
        kong_conf=options.kong_conf,
        kong=options.kong,
    )
    print(report.json() if options.json else report.text(), end="")
    return OK if report.fine else FAILED
