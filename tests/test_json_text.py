"""JSON that is written without the json module is what the module writes."""

from __future__ import annotations

import enum
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import SRC

from kongps.cli.json_text import json_text

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner)
)


class Level(enum.IntEnum):
    LOW = 1


@given(value=VALUES)
def test_any_value_is_written_as_json_dumps_writes_it(value: Any) -> None:
    assert json_text(value) == json.dumps(value)


@pytest.mark.parametrize(
    "value",
    [
        'a "quoted" one', "back\\slash", "\x7f", "\x00", "é", "\ud800", "", " ", (1, [2]), True,
        Level.LOW, {True: False}, {None: 1}, 1e300 * 10, -0.0, 2**70, {"a": {1: ("b",)}},
    ],
)  # fmt: skip
def test_what_is_special_in_json_is_left_to_json_dumps(value: Any) -> None:
    assert json_text(value) == json.dumps(value)


def test_what_json_has_nothing_for_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        json_text([{"a": {1, 2}}])


def test_a_usual_dump_needs_no_json() -> None:
    value = '{"Name": "key-gate", "Phases": ["access"], "Priority": 1250, "Half": 0.5, "No": None}'
    script = f"import sys; from kongps.cli.json_text import json_text; json_text({value}); "
    done = subprocess.run(
        [sys.executable, "-S", "-c", script + "sys.exit('json' in sys.modules)"],
        env={"PYTHONPATH": str(SRC)},
    )
    assert done.returncode == 0
