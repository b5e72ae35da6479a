"""The figures to reach: what kongps must show next to the others, in one run on one machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

Measured = dict[str, Any]
Spread = dict[str, float]

PYTHON_MODES = ("gevent", "threads", "multiprocessing")


@dataclass(frozen=True)
class Figure:
    """One figure: ``read`` finds it in what was measured, None where it was not."""

    what: str
    least: Optional[float]
    most: Optional[float]
    read: Callable[[Measured], Optional[Spread]]


def ratio(
    subject: str, other: str, figure: str, connections: int = 16
) -> Callable[[Measured], Optional[Spread]]:
    def read(measured: Measured) -> Optional[Spread]:
        cell = hello(measured, connections)
        found = cell["ratios"].get(subject, {}).get(other, {}).get(figure) if cell else None
        return dict(found) if found else None

    return read


def over_best_python(measured: Measured) -> Optional[Spread]:
    """Over the mode of kong-python-pdk with the most events per second, all three measured."""
    cell = hello(measured, 16)
    if cell is None:
        return None
    names = [f"kong-python-pdk-{mode}" for mode in PYTHON_MODES]
    if not all(name in cell["summary"] for name in names):
        return None
    best = max(names, key=lambda name: cell["summary"][name]["events_per_second"]["median"])
    return ratio("kongps", best, "events_per_second")(measured)


def two_workers(protocol: str) -> Callable[[Measured], Optional[Spread]]:
    def read(measured: Measured) -> Optional[Spread]:
        found = measured.get("workers", {}).get(protocol)
        return dict(found["gain"]) if found else None

    return read


def resident_mb(measured: Measured) -> Optional[Spread]:
    cell = hello(measured, 16)
    found = cell["summary"].get("kongps") if cell else None
    return {key: value / 1024 for key, value in found["rss_kb"].items()} if found else None


def dump_ratio(measured: Measured) -> Optional[Spread]:
    ours = measured["dump_ms"].get("kongps")
    theirs = measured["dump_ms"].get("kong-python-pdk-gevent")
    if not ours or not theirs:
        return None
    return {
        "median": ours["median"] / theirs["median"],
        "min": ours["min"] / theirs["max"],
        "max": ours["max"] / theirs["min"],
    }


def hello(measured: Measured, connections: int) -> Optional[Measured]:
    for cell in measured["cells"]:
        if (cell["workload"], cell["connections"], cell["move_steps"]) == (
            "hello",
            connections,
            False,
        ):
            return dict(cell)
    return None


FIGURES: Sequence[Figure] = (
    Figure(
        "MsgPack:1 events/s over the floor's",
        0.45,
        None,
        ratio("kongps", "floor", "events_per_second"),
    ),
    Figure(
        "MsgPack:1 events/s over go-pluginserver's",
        3.0,
        None,
        ratio("kongps", "go-pluginserver", "events_per_second"),
    ),
    Figure("MsgPack:1 events/s over kong-python-pdk's best mode", 7.0, None, over_best_python),
    Figure(
        "ProtoBuf:1 events/s over go-pdk's",
        2.5,
        None,
        ratio("kongps-protobuf", "go-pdk", "events_per_second"),
    ),
    Figure(
        "p99 latency at 16 connections over go-pdk's",
        None,
        0.5,
        ratio("kongps-protobuf", "go-pdk", "p99_us", 16),
    ),
    Figure(
        "p99 latency at 64 connections over go-pdk's",
        None,
        0.5,
        ratio("kongps-protobuf", "go-pdk", "p99_us", 64),
    ),
    Figure(
        "CPU time per event over go-pdk's",
        None,
        0.4,
        ratio("kongps-protobuf", "go-pdk", "cpu_us_per_event"),
    ),
    Figure("resident memory with the hello plugin, MB", None, 30.0, resident_mb),
    Figure(
        "time of `kongps dump` over `kong-python-pluginserver --dump-all-plugins`",
        None,
        0.4,
        dump_ratio,
    ),
    Figure(
        "one connection: latency (p50) of an event over go-pdk's",
        None,
        0.7,
        ratio("kongps-protobuf", "go-pdk", "p50_us", 1),
    ),
    Figure(
        "handlers in threads, MsgPack:1: events/s over kong-python-pdk's threads",
        4.0,
        None,
        ratio("kongps-threads", "kong-python-pdk-threads", "events_per_second"),
    ),
    Figure(
        "two workers over one, 0.2 ms of Python, MsgPack:1, steps on random connections",
        1.7,
        None,
        two_workers("msgpack"),
    ),
    Figure(
        "two workers over one, 0.2 ms of Python, ProtoBuf:1", 1.7, None, two_workers("protobuf")
    ),
)


def judge(measured: Measured) -> list[Measured]:
    """Each figure with what was measured; ``reached`` is None where that cannot be judged."""
    rows = []
    for figure in FIGURES:
        found = figure.read(measured)
        row: Measured = {
            "what": figure.what,
            "target": f"at least {figure.least:g}" if figure.least else f"at most {figure.most:g}",
            "reached": None,
        }
        if found:
            row.update(found)
            row["reached"] = (
                found["median"] >= figure.least
                if figure.least is not None
                else found["median"] <= (figure.most or 0)
            )
        rows.append(row)
    return rows
