"""Events per second of kongps, of what people would use instead, and of the floor.

    python benchmarks/run.py [--peers kongps,go-pluginserver] [--rounds 5] [--seconds 5]

Each round starts each server in turn, so that a noisy minute of the machine falls on all of them;
the order is turned by one from round to round. Exit status: 0 fine, 1 when a server that was
measured gave errors, or, with --check, when a target is missed or cannot be judged.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable

from harness import ROOT, TOOLS, build_tools, load, running
from peers import MissingPeer, Peer, all_peers, home_of

SUBJECT = "kongps"

TARGETS = {"go-pluginserver": 1.5, "kong-python-pdk-gevent": 4.0}
"""What kongps' events per second must at least be, over each of these, for `hello`."""

CALLS = {"hello": {"kong.request.get_header": 1, "kong.response.set_header": 2}}
"""The PDK calls of one event: a server that makes others does not do the workload."""

Report = dict[str, Any]


def main() -> int:
    options = parse_arguments()
    build_tools()
    missing: dict[str, str] = {}
    chosen: list[Peer] = []
    for peer in options.peers:
        print(f"setting up {peer.name}", file=sys.stderr, flush=True)
        try:
            peer.prepare(home_of(peer, ROOT), options.workload)
            chosen.append(peer)
        except MissingPeer as absent:
            missing[peer.name] = str(absent)

    reports: dict[str, list[Report]] = {peer.name: [] for peer in chosen}
    problems: dict[str, list[str]] = {}
    for round_ in range(options.rounds):
        turn = round_ % len(chosen) if chosen else 0
        for peer in chosen[turn:] + chosen[:turn]:
            if peer.name in missing:
                continue
            print(f"round {round_ + 1} of {options.rounds}: {peer.name}", end="", file=sys.stderr)
            try:
                with running(peer, options.workload) as server:
                    report = load(server, driver_options(options))
            except MissingPeer as absent:
                print(" does not run", file=sys.stderr)
                missing[peer.name] = str(absent)
                continue
            print(f" {report['events_per_second']:,.0f} events/s", file=sys.stderr, flush=True)
            reports[peer.name].append(report)
            found = find_problems(report, options.workload)
            if found:
                problems.setdefault(peer.name, []).extend(found)

    measured = {name: rows for name, rows in reports.items() if rows}
    rows = {name: summary(measured, name) for name in measured}
    labels = {peer.name: f"{peer.name} {peer.version}".strip() for peer in chosen}
    print_table(rows, labels, options)
    for peer in chosen:
        for note in peer.notes:
            print(f"{peer.name}: {note}")
    for name, reason in missing.items():
        print(f"{name}: missing: {reason}")
    for name, found in problems.items():
        for problem in sorted(set(found)):
            print(f"{name}: {problem}")
    print_driver(measured)
    verdicts = judge(rows) if options.workload == "hello" else {}
    for name, (target, ratio) in verdicts.items():
        state = "cannot be judged" if ratio is None else "met" if ratio >= target else "MISSED"
        shown = "" if ratio is None else f" (median {ratio:.2f})"
        label = labels.get(name, name)
        print(f"target: {SUBJECT} at least {target:g} times {label}: {state}{shown}")
    save(options, chosen, rows, measured, missing, problems)

    failed = bool(problems)
    if options.check:
        failed = failed or any(r is None or r < t for t, r in verdicts.values())
    return 1 if failed or not measured else 0


def parse_arguments() -> argparse.Namespace:
    peers = all_peers(TOOLS)

    def peer_list(text: str) -> list[Peer]:
        unknown = [name for name in text.split(",") if name not in peers]
        if unknown:
            raise argparse.ArgumentTypeError(f"no peer {unknown[0]!r}")
        return [peers[name] for name in text.split(",")]

    def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
        def parse(text: str) -> float:
            value = kind(text)
            if value <= 0:
                raise argparse.ArgumentTypeError("must be above 0")
            return value

        parse.__name__ = kind.__name__
        return parse

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peers",
        type=peer_list,
        default=list(peers.values()),
        help=f"comma-separated; all of them by default: {', '.join(peers)}",
    )
    parser.add_argument("--workload", default="hello", help="the plugin that is run (hello)")
    parser.add_argument("--rounds", type=positive(int), default=5, help="runs of each server (5)")
    parser.add_argument("--seconds", type=positive(float), default=5.0, help="of each run (5)")
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before each run (1)")
    parser.add_argument("--connections", type=positive(int), default=16, help="in flight (16)")
    parser.add_argument("--move-steps", action="store_true", help="steps on other connections")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results.json", help="JSON file (.bench/results.json)"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    return parser.parse_args()


def driver_options(options: argparse.Namespace) -> list[str]:
    arguments = ["--connections", str(options.connections), "--seconds", str(options.seconds)]
    arguments += ["--warmup", str(options.warmup)]
    return arguments + (["--move-steps"] if options.move_steps else [])


def find_problems(report: Report, workload: str) -> list[str]:
    """What makes a run worthless: errors of the driver, or calls that are not the workload's."""
    found = [f"error: {name}" for name in report["errors"]]
    events = report["events"]
    # Events that the window's edges cut in two make a few calls more or fewer.
    slack = 4 * report["connections"]
    for method, per_event in CALLS.get(workload, {}).items():
        calls = report["calls"].get(method, 0)
        if abs(calls - per_event * events) > slack:
            found.append(f"{method}: {calls / max(events, 1):.2f} calls per event, not {per_event}")
    return found


def summary(measured: dict[str, list[Report]], name: str) -> Report:
    """Medians and ranges of one server's rounds."""
    reports = measured[name]

    def over(read: Callable[[Report], float]) -> dict[str, float]:
        values = [read(report) for report in reports]
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    row: Report = {
        "events_per_second": over(lambda r: float(r["events_per_second"])),
        "cpu_us_per_event": over(lambda r: float(r["server"]["cpu_us_per_event"])),
        "latency_us": {
            key: over(lambda r, key=key: float(r["latency_us"][key]))  # type: ignore[misc]
            for key in ("p50", "p90", "p99", "p99.9", "max")
        },
        "rss_kb": over(lambda r: float(r["server"]["rss_kb"]["after"])),
        "pss_kb": over(lambda r: float(r["server"]["pss_kb"]["after"])),
        "peak_rss_kb": over(lambda r: float(r["server"]["rss_kb"]["peak"])),
        "driver_cpu_share": over(lambda r: float(r["driver"]["cpu_share"])),
    }
    subject = measured.get(SUBJECT, [])
    pairs = [
        (float(ours["events_per_second"]), float(theirs["events_per_second"]))
        for ours, theirs in zip(subject, reports)
    ]
    ratios = [ours / theirs for ours, theirs in pairs if theirs]
    if ratios:
        row["subject_over_this"] = {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        }
    return row


def print_table(
    rows: dict[str, Report], labels: dict[str, str], options: argparse.Namespace
) -> None:
    moved = ", steps move between connections" if options.move_steps else ""
    print(
        f"\n{options.workload}, {options.connections} connections, {options.rounds} rounds of "
        f"{options.seconds:g} s: median (lowest - highest){moved}\n"
    )
    lines = [
        ("", "events/s", f"{SUBJECT} over it", "CPU us/event", "p50 us", "p99 us", "RSS MB"),
    ]
    for name, row in rows.items():
        speed, ratio = row["events_per_second"], row.get("subject_over_this")
        lines.append(
            (
                labels[name],
                f"{speed['median']:,.0f} ({speed['min']:,.0f} - {speed['max']:,.0f})",
                f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"
                if ratio
                else "-",
                f"{row['cpu_us_per_event']['median']:.1f}",
                f"{row['latency_us']['p50']['median']:,.0f}",
                f"{row['latency_us']['p99']['median']:,.0f}",
                f"{row['rss_kb']['median'] / 1024:.1f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        print("  ".join(cells).rstrip())
    print()


def print_driver(measured: dict[str, list[Report]]) -> None:
    """How near the driver is to its own limit: against the floor it can do no more."""
    if "floor" not in measured:
        print("driver: the floor was not measured, so its ceiling is not known")
        return
    floor = measured["floor"]
    ceiling = statistics.median(float(r["events_per_second"]) for r in floor)
    share = statistics.median(float(r["driver"]["cpu_share"]) for r in floor)
    print(f"driver: ceiling {ceiling:,.0f} events/s against the floor at {share:.0%} of a core")
    for name, reports in measured.items():
        if name != "floor":
            share = statistics.median(float(r["driver"]["cpu_share"]) for r in reports)
            print(f"driver: {share:.0%} of a core against {name}")


def judge(rows: dict[str, Report]) -> dict[str, tuple[float, float | None]]:
    """Each target with the median of the rounds' ratios; None where one of the two is missing."""
    verdicts: dict[str, tuple[float, float | None]] = {}
    for name, target in TARGETS.items():
        ratio = rows.get(name, {}).get("subject_over_this")
        verdicts[name] = (target, float(ratio["median"]) if ratio else None)
    return verdicts


def machine() -> dict[str, Any]:
    """The machine, as far as it matters to the figures."""
    model = platform.processor()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def save(
    options: argparse.Namespace,
    chosen: list[Peer],
    rows: dict[str, Report],
    measured: dict[str, list[Report]],
    missing: dict[str, str],
    problems: dict[str, list[str]],
) -> None:
    result = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "workload": options.workload,
        "connections": options.connections,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "move_steps": options.move_steps,
        "versions": {peer.name: peer.versions() for peer in chosen},
        "notes": {p.name: p.notes for p in chosen if p.notes},
        "summary": rows,
        "missing": missing,
        "problems": problems,
        "runs": measured,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"all figures: {options.output}")


if __name__ == "__main__":
    sys.exit(main())
