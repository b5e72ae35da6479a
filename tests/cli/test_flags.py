"""Command lines that are read without argparse mean what they mean to argparse."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kongps.cli import flags
from kongps.cli import main as cli

# Every flag of the commands with each kind of value, and what is no flag of any.
FLAGS = [
    "--plugins-directory", "-plugins-directory", "-d", "--protocol", "--socket", "--no-lua-style",
    "--allow-unsafe-plugins", "--kong", "--prefix", "--socket-mode", "--listen-queue-size",
    "--shutdown-timeout", "--parent-watch", "--no-parent-watch", "--on-error", "--log-level",
    "-p", "-kong-prefix", "--socket-name", "-dump-plugin-info", "--dump-all-plugins", "-v",
    "--verbose", "-version", "-m", "-g", "--help", "--version", "--", "-", "-x", "-1", "--no-such",
    "--protocol=msgpack", "-pX", "-vv", "--plugins", "- x",
]  # fmt: skip
VALUES = ["", "a", "hello", "msgpack", "open", "0660", "99", "0", "1.5", "nan", "debug", "é", "a b"]

LINES = st.lists(st.sampled_from(FLAGS) | st.sampled_from(VALUES), max_size=6)


def by_argparse(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any] | None:
    try:
        return vars(parser.parse_args(words))
    except SystemExit:
        return None


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
@given(words=LINES)
def test_what_is_read_of_a_subcommand_is_what_argparse_reads(name: str, words: list[str]) -> None:
    plain = flags.read(cli.COMMANDS[name].declare, words)
    if plain is not None:
        expected = {**vars(plain), "command": name, "run": cli.COMMANDS[name].run}
        assert by_argparse(cli._parser(), [name, *words]) == expected


@given(words=LINES)
def test_what_is_read_of_the_older_flags_is_what_argparse_reads(words: list[str]) -> None:
    plain = flags.read(cli._add_compatible, words)
    if plain is not None:
        assert by_argparse(cli._compatible_parser(), words) == vars(plain)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("serve", "--plugins-directory /p --socket /s --socket-mode 0660 --log-format json"),
        ("serve", "--event-timeout 5 --max-events 10 --no-pipelining --on-error open"),
        ("dump", "--plugins-directory /p --socket /s --protocol protobuf key-gate"),
        ("dump", "one two --no-lua-style --plugins-directory /p"),
        ("dump", ""),
        ("conf", "--kong 2.8 --plugins-directory /p --allow-unsafe-plugins"),
        ("compatible", "-kong-prefix /k -plugins-directory /p -dump-all-plugins"),
        ("compatible", "-p /k -d /p --dump-plugin-info hello -v -v"),
        ("compatible", "--kong-prefix /k --plugins-directory /p --socket-name s"),
    ],
)
def test_usual_lines_are_read_without_argparse(name: str, line: str) -> None:
    declare = cli.COMMANDS[name].declare if name in cli.COMMANDS else cli._add_compatible
    assert flags.read(declare, line.split()) is not None


@pytest.mark.parametrize(
    "line",
    [
        "--no-such", "--protocol", "--protocol x", "--protocol --socket", "--help", "--",
        "--protocol=msgpack", "one --socket /s two", "--socket -", "-x",
    ],
)  # fmt: skip
def test_everything_else_is_left_to_argparse(line: str) -> None:
    assert flags.read(cli.COMMANDS["dump"].declare, line.split()) is None
