"""Kills, configuration changes and reloads under load: no event is lost, doubled or mixed up."""

from __future__ import annotations

from pathlib import Path

import pytest
from workers_soak import faults, soak


def test_kills_and_changes_under_load_lose_and_mix_up_nothing(short_path: Path) -> None:
    counts, log = soak(short_path, kills=3, pause=0.7)
    assert faults(counts, 3) == []
    assert counts["fine"] > 100
    assert log.count("was killed by signal 9") == 3
    assert "Traceback" not in log


@pytest.mark.soak
def test_many_kills_and_reloads_under_load_lose_and_mix_up_nothing(short_path: Path) -> None:
    counts, log = soak(short_path, kills=60, pause=2.0, reloads=60)
    assert faults(counts, 60) == []
    assert "Traceback" not in log
