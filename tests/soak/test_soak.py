"""The short version of `make soak`."""

from __future__ import annotations

from pathlib import Path

from soak import MIX, Soak


def test_a_short_soak(short_path: Path) -> None:
    soak = Soak(short_path)
    try:
        soak.run(6000, 2000)
        left = soak.finish()
    finally:
        soak.end()
    assert left["events"] == left["instances"] == 0
    assert set(soak.counts) == set(MIX)
    assert len(soak.readings) == 3
    assert soak.growth() < 1024
