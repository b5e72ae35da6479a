"""What comes from the settings: flags, environment variables, help, the README's table."""

from __future__ import annotations

import dataclasses

import pytest
import settings_table
from server_process import run

from kongps.errors import UsageError
from kongps.settings import SETTINGS, Settings, from_environment


def test_the_readme_has_the_table_that_the_settings_make() -> None:
    assert settings_table.PAGE.read_text() == settings_table.render(), "run `make docs`"


def test_every_setting_has_a_flag_and_its_default_in_the_help_of_serve() -> None:
    help = " ".join(run("serve", "--help").stdout.decode().split())
    for setting in SETTINGS.values():
        assert (setting.flag_name in help) == setting.flag, setting.name
        if setting.flag and setting.default_text:
            assert f"(default: {setting.default_text})" in help


def test_defaults_are_written_as_they_are_read() -> None:
    for setting in SETTINGS.values():
        assert setting.unit.parse(setting.unit.show(setting.default)) == setting.default
        assert getattr(Settings(), setting.name) == setting.default
    assert vars(dataclasses.replace(Settings(), workers=2)) == {**vars(Settings()), "workers": 2}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("socket_mode", "0660", 0o660),
        ("shutdown_timeout", "1.5", 1.5),
        ("max_events", "7", 7),
        ("workers", "3", 3),
        ("reload", "yes", True),
        ("parent_watch", "Off", False),
        ("no_pipelining", "", False),
        ("handlers", "thread", "thread"),
    ],
)
def test_a_variable_gives_a_setting(name: str, text: str, value: object) -> None:
    assert from_environment({SETTINGS[name].variable: text}) == {name: value}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("socket_mode", "rw"),
        ("socket_mode", "1777"),
        ("event_timeout", "inf"),
        ("event_timeout", "-1"),
        ("max_events", "0"),
        ("max_message", "100"),
        ("workers", "65"),
        ("reload", "maybe"),
        ("log_format", "xml"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_expected(name: str, text: str) -> None:
    setting = SETTINGS[name]
    with pytest.raises(UsageError) as caught:
        from_environment({setting.variable: text})
    assert str(caught.value) == f"{setting.variable}={text!r} is not {setting.unit.expected}"


def test_variables_that_are_no_settings_are_passed_over() -> None:
    assert from_environment({"KONGPS_PORT": "tcp://10.0.0.1:80", "KONGPS": "1"}) == {}
