"""The measured figures as tables: plain text for a terminal, Markdown for the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Measured = dict[str, Any]
Row = Sequence[str]


def text_table(rows: Sequence[Row]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(rows: Sequence[Row]) -> str:
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def with_spread(found: dict[str, float] | None, form: str = ".2f") -> str:
    if not found:
        return "-"
    median, low, high = (format(found[key], form) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low} - {high})"


def events_table(measured: Measured, cell: Measured) -> list[Row]:
    rows: list[Row] = [
        ("", "events/s", "CPU us/event", "p50 us", "p99 us", "p99.9 us", "RSS MB", "driver"),
    ]
    for name, row in cell["summary"].items():
        rows.append(
            (
                measured["labels"].get(name, name),
                with_spread(row["events_per_second"], ",.0f"),
                f"{row['cpu_us_per_event']['median']:.1f}",
                *(f"{row[key]['median']:,.0f}" for key in ("p50_us", "p99_us", "p99.9_us")),
                f"{row['rss_kb']['median'] / 1024:.1f}",
                f"{row['driver_cpu_share']['median']:.0%}",
            )
        )
    return rows


def ratio_table(measured: Measured) -> list[Row]:
    """kongps' events per second over everybody else's: a row per server, a column per cell."""
    cells = measured["cells"]
    rows: list[Row] = [("kongps' events/s over", *(title(cell) for cell in cells))]
    for subject, protocol in (("kongps", "msgpack"), ("kongps-protobuf", "protobuf")):
        for name, spoken in measured["protocols"].items():
            if spoken != protocol or name == subject:
                continue
            found = [
                cell["ratios"].get(subject, {}).get(name, {}).get("events_per_second")
                for cell in cells
            ]
            label = measured["labels"].get(name, name)
            if any(found):
                rows.append((label, *(with_spread(one) for one in found)))
    return rows


def title(cell: Measured) -> str:
    moving = ", moving" if cell["move_steps"] else ""
    return f"{cell['workload']} {cell['connections']}{moving}"


def figures_table(measured: Measured) -> list[Row]:
    words = {True: "reached", False: "NOT reached", None: "cannot be judged"}
    rows: list[Row] = [("figure (hello, 16 connections)", "must be", "is", "")]
    for row in measured["figures"]:
        rows.append(
            (
                row["what"],
                row["target"],
                with_spread(row if "median" in row else None),
                words[row["reached"]],
            )
        )
    return rows


def start_table(measured: Measured) -> list[Row]:
    rows: list[Row] = [("milliseconds", "dump", "start until the first answer")]
    for name in measured["first_answer_ms"]:
        rows.append(
            (
                measured["labels"].get(name, name),
                with_spread(measured["dump_ms"].get(name), ".0f"),
                with_spread(measured["first_answer_ms"][name], ".0f"),
            )
        )
    return rows


def memory_table(measured: Measured) -> list[Row]:
    rows: list[Row] = []
    for name, row in measured["memory"].items():
        held = row["events_in_flight"]
        if not rows:
            counts = [f"{int(count):,} instances" for count in row["instances"]]
            rows.append(("resident MB", *counts, "1,000 connections", "and 1,000 events in flight"))
        cells = [megabytes(one) for one in row["instances"].values()]
        cells.append(megabytes(row.get("without_events")))
        for count, one in held.items():
            fewer = "" if int(count) >= 1000 else f" (only {int(count):,})"
            cells.append(megabytes(one) + fewer)
        cells += ["-"] * (len(rows[0]) - 1 - len(cells))
        rows.append((measured["labels"].get(name, name), *cells))
    return rows


def megabytes(memory: dict[str, int] | None) -> str:
    return f"{memory['rss_kb'] / 1024:.1f}" if memory else "-"


def scaling_table(measured: Measured) -> list[Row]:
    counts = sorted({row["connections"] for rows in measured["scaling"].values() for row in rows})
    rows: list[Row] = [("events/s at connections", *map(str, counts))]
    for name, found in measured["scaling"].items():
        speeds = {row["connections"]: row["events_per_second"] for row in found}
        cells = [f"{speeds[count]:,.0f}" if count in speeds else "-" for count in counts]
        rows.append((measured["labels"].get(name, name), *cells))
    return rows


def ceilings(measured: Measured) -> Iterable[str]:
    """How near the driver comes to its own limit: against the floor it can do no more."""
    for cell in measured["cells"]:
        for floor, subject in (("floor", "kongps"), ("floor-protobuf", "kongps-protobuf")):
            row, ours = cell["summary"].get(floor), cell["summary"].get(subject)
            if row is None:
                continue
            line = (
                f"{title(cell)}: the driver's ceiling is {row['events_per_second']['median']:,.0f} "
                f"events/s, against {floor}, at {row['driver_cpu_share']['median']:.0%} of a core"
            )
            if ours:
                line += f"; against {subject} it used {ours['driver_cpu_share']['median']:.0%}"
            yield line


def show(measured: Measured) -> None:
    """Everything, for a terminal."""
    for cell in measured["cells"]:
        if cell["summary"]:
            print(f"\n{title(cell)} connections: median (lowest - highest)\n")
            print(text_table(events_table(measured, cell)))
    sections = [
        ratio_table(measured) if measured["cells"] else [],
        scaling_table(measured) if measured["scaling"] else [],
        start_table(measured) if measured["first_answer_ms"] else [],
        memory_table(measured),
    ]
    for rows in sections:
        if len(rows) > 1:
            print(f"\n{text_table(rows)}")
    print()
    for line in ceilings(measured):
        print(line)
    for name, notes in measured["notes"].items():
        for note in notes:
            print(f"{name}: {note}")
    for name, reason in measured["missing"].items():
        print(f"{name}: missing: {reason}")
    for name, found in measured["problems"].items():
        for problem in found:
            print(f"PROBLEM: {name}: {problem}")
    print(f"\n{text_table(figures_table(measured))}")
    if measured["busy"]:
        print(f"\n{measured['busy']}")
