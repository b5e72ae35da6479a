"""The measured figures as a page with plots, in docs/benchmarks.

    python benchmarks/page.py [--input .bench/results.json] [--output docs/benchmarks]

Needed: matplotlib (`pip install 'kongps[bench]'`). The page is replaced each time. How it was
measured is in README.md beside it, which is not touched.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tables
from harness import HERE, ROOT

try:
    import matplotlib
except ImportError:
    raise SystemExit("page.py needs matplotlib: pip install 'kongps[bench]'") from None

matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        # The same figures give the same file.
        "svg.hashsalt": "kongps",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
    }
)
from matplotlib import pyplot  # noqa: E402

COLOURS = {
    "floor": "#9a9a9a",
    "floor-protobuf": "#c4c4c4",
    "kongps": "#0b6e4f",
    "kongps-protobuf": "#35b07f",
    "kongps-threads": "#5d7f2f",
    "kongps-protobuf-threads": "#9cc26a",
    "go-pluginserver": "#1f5fa8",
    "go-pdk": "#6ba3dd",
    "kong-python-pdk-gevent": "#b5532a",
    "kong-python-pdk-threads": "#d98c5f",
    "kong-python-pdk-multiprocessing": "#e8bfa0",
    "kong-js-pdk": "#c9a227",
}

Measured = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, default=ROOT / "results.json")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmarks")
    options = parser.parse_args()
    measured: Measured = json.loads(options.input.read_text())
    options.output.mkdir(parents=True, exist_ok=True)
    for cell in measured["cells"]:
        del cell["runs"]  # each run alone: in .bench/results.json of whoever measured
    (options.output / "results.json").write_text(json.dumps(measured, indent=1) + "\n")
    plots = draw(measured, options.output)
    (options.output / "results.md").write_text(page(measured, plots))
    print(f"{options.output / 'results.md'}, with {len(plots)} plots")
    return 0


# --- plots ------------------------------------------------------------------------------------


def draw(measured: Measured, output: Path) -> dict[str, str]:
    """Writes the plots that there are figures for; their titles by file name."""
    plots: dict[str, str] = {}
    cells = [cell for cell in measured["cells"] if not cell["move_steps"] and cell["summary"]]
    workloads = [cell for cell in cells if cell["connections"] == 16]
    counts = sorted(
        (cell for cell in cells if cell["workload"] == "hello"), key=lambda c: c["connections"]
    )
    if workloads:
        title = "Events per second, 16 connections"
        plots["workloads.svg"] = title
        bars(workloads, "workload", "events_per_second", output / "workloads.svg", title)
        title = "CPU time per event, microseconds, 16 connections"
        plots["cpu.svg"] = title
        bars(workloads, "workload", "cpu_us_per_event", output / "cpu.svg", title)
    if len(counts) > 1:
        title = "hello: p99 latency, microseconds, by connections"
        plots["latency.svg"] = title
        bars(counts, "connections", "p99_us", output / "latency.svg", title)
    if measured["scaling"]:
        title = "hello: events per second from 1 to 1,000 connections"
        plots["scaling.svg"] = title
        scaling(measured, output / "scaling.svg", title)
    if measured["memory"]:
        title = "Resident memory, MB"
        plots["memory.svg"] = title
        memory(measured, output / "memory.svg", title)
    return plots


def bars(cells: Sequence[Measured], by: str, figure: str, path: Path, title: str) -> None:
    """Groups of bars, one for each cell, with the spread of the rounds; a logarithmic scale."""
    names = [name for name in COLOURS if any(name in cell["summary"] for cell in cells)]
    drawing, axes = pyplot.subplots(figsize=(10, 4.2))
    width = 0.84 / max(len(names), 1)
    for index, name in enumerate(names):
        found = [
            (i, c["summary"][name][figure]) for i, c in enumerate(cells) if name in c["summary"]
        ]
        places = [i - 0.42 + width * (index + 0.5) for i, _ in found]
        medians = [one["median"] for _, one in found]
        spread = [
            [one["median"] - one["min"] for _, one in found],
            [one["max"] - one["median"] for _, one in found],
        ]
        axes.bar(places, medians, width * 0.92, color=COLOURS[name], label=name)
        axes.errorbar(places, medians, spread, fmt="none", ecolor="#333333", elinewidth=0.7)
    axes.set_yscale("log")
    axes.set_xticks(range(len(cells)), [str(cell[by]) for cell in cells])
    axes.grid(axis="x", visible=False)
    finish(drawing, axes, path, title, "connections" if by == "connections" else "")


def scaling(measured: Measured, path: Path, title: str) -> None:
    drawing, axes = pyplot.subplots(figsize=(10, 4.2))
    for name, rows in measured["scaling"].items():
        counts = [row["connections"] for row in rows]
        speeds = [row["events_per_second"] for row in rows]
        axes.plot(counts, speeds, marker="o", markersize=3.5, color=COLOURS[name], label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    finish(drawing, axes, path, title, "connections")


def memory(measured: Measured, path: Path, title: str) -> None:
    drawing, axes = pyplot.subplots(figsize=(10, 4.2))
    names = list(measured["memory"])
    labels: list[str] = []
    for index, name in enumerate(names):
        row = measured["memory"][name]
        sizes = {f"{int(count):,} instances": one for count, one in row["instances"].items()}
        for one in row["events_in_flight"].values():
            sizes["1,000 events in flight"] = one
        labels = max(labels, list(sizes), key=len)
        width = 0.84 / len(names)
        places = [i - 0.42 + width * (index + 0.5) for i in range(len(sizes))]
        values = [one["rss_kb"] / 1024 for one in sizes.values()]
        axes.bar(places, values, width * 0.92, color=COLOURS[name], label=name)
    axes.set_xticks(range(len(labels)), labels)
    axes.grid(axis="x", visible=False)
    finish(drawing, axes, path, title, "")


def finish(drawing: Any, axes: Any, path: Path, title: str, below: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel(below)
    axes.legend(ncols=1, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    drawing.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(drawing)
    # matplotlib ends some lines with a space.
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n")


# --- the page ---------------------------------------------------------------------------------


def page(measured: Measured, plots: dict[str, str]) -> str:
    machine, settings = measured["machine"], measured["settings"]
    parts = [
        "# Measured figures",
        "Written by `benchmarks/page.py`; [README.md](README.md) says how they are measured and "
        "what the words mean. All numbers: [results.json](results.json).",
        f"{measured['time'][:10]}, {machine['processor']}, {machine['cores']} cores, Linux "
        f"{machine['kernel']} on {machine['architecture']}, CPython {machine['python']}. "
        f"{settings['rounds']} alternating rounds of {settings['seconds']:g} s; each figure is "
        "the median, in brackets the lowest and the highest.",
        *([f"**{measured['busy']}**"] if measured["busy"] else []),
        "## The figures to reach",
        tables.markdown_table(tables.figures_table(measured)),
    ]
    if measured["cells"]:
        parts += ["## Ratios", tables.markdown_table(tables.ratio_table(measured))]
    for name, title in plots.items():
        parts.append(f"![{title}]({name})")
    for cell in measured["cells"]:
        if cell["summary"]:
            parts += [
                f"## {tables.title(cell)} connections",
                tables.markdown_table(tables.events_table(measured, cell)),
            ]
    if measured["scaling"]:
        parts += [
            "## From 1 to 1,000 connections",
            tables.markdown_table(tables.scaling_table(measured)),
        ]
    if measured["first_answer_ms"]:
        parts += ["## Starts", tables.markdown_table(tables.start_table(measured))]
    if measured["memory"]:
        parts += ["## Memory", tables.markdown_table(tables.memory_table(measured))]
    parts += ["## The driver's ceiling", "\n".join(f"- {x}" for x in tables.ceilings(measured))]
    absent = [f"- {name}: {reason}" for name, reason in measured["missing"].items()]
    absent += [f"- {name}: {n}" for name, notes in measured["notes"].items() for n in notes]
    absent += [f"- {name}: {x}" for name, found in measured["problems"].items() for x in found]
    parts += ["## Missing, replaced, or with errors", "\n".join(absent) or "Nothing."]
    versions = [
        f"- {name}: " + ", ".join(f"{package} {version}" for package, version in found.items())
        for name, found in measured["versions"].items()
        if found
    ]
    parts += ["## Versions", "\n".join(versions)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
