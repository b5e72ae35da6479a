"""Events per second of kongps, of what people would use instead, and of the floor.

    python benchmarks/run.py                                  # every part
    python benchmarks/run.py --parts events --workloads hello --peers floor,kongps --seconds 2

Each round starts each server in turn, so that a noisy minute of the machine falls on all of them;
the order is turned by one from round to round. Exit status: 0 fine, 1 when a server that was
measured gave errors, or, with --check, when a figure is not reached or cannot be judged.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Callable

import figures
import parts
import tables
from harness import ROOT, TOOLS, build_tools
from parts import CALLS, Settings
from peers import Peer, all_peers

PARTS = ("events", "moving", "scaling", "start", "memory", "workers")


def main() -> int:
    options = parse_arguments()
    build_tools()
    settings = Settings(
        rounds=options.rounds,
        seconds=options.seconds,
        warmup=options.warmup,
        connections=options.connections[0],
    )
    busy = others_at_work()
    if busy:
        print(busy, file=sys.stderr)
    results = parts.Results(options.peers)
    began = time.time()
    if "events" in options.parts:
        for workload in options.workloads:
            parts.measure_events(results, settings, workload, settings.connections)
        for connections in options.connections[1:]:
            parts.measure_events(results, settings, "hello", connections)
    if "moving" in options.parts:
        parts.measure_events(results, settings, "hello", settings.connections, move=True)
    if "scaling" in options.parts:
        parts.measure_scaling(results, settings)
    if "start" in options.parts:
        parts.measure_start(results, settings)
    if "memory" in options.parts:
        parts.measure_memory(results)
    if "workers" in options.parts:
        parts.measure_workers(results, settings)

    measured = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "machine": machine(),
        "busy": busy,
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "warmup": settings.warmup,
        },
        **results.as_json(),
    }
    measured["figures"] = figures.judge(measured)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(measured, indent=1) + "\n")
    tables.show(measured)
    print(f"all figures: {options.output}")

    failed = bool(results.problems) or not results.peers
    if options.check:
        failed = failed or any(row["reached"] is not True for row in measured["figures"])
    return 1 if failed else 0


def parse_arguments() -> argparse.Namespace:
    peers = all_peers(TOOLS)

    def chosen(kind: str, allowed: Any) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            names = [name for name in text.split(",") if name]
            for name in names:
                if name not in allowed:
                    raise argparse.ArgumentTypeError(f"no {kind} {name!r}")
            return names

        return parse

    def peer_list(text: str) -> list[Peer]:
        return [peers[name] for name in chosen("peer", peers)(text)]

    def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
        def parse(text: str) -> float:
            value = kind(text)
            if value <= 0:
                raise argparse.ArgumentTypeError("must be above 0")
            return value

        parse.__name__ = kind.__name__
        return parse

    def counts(text: str) -> list[int]:
        return [int(positive(int)(part)) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--parts", type=chosen("part", PARTS), default=list(PARTS), help=", ".join(PARTS)
    )
    parser.add_argument(
        "--peers",
        type=peer_list,
        default=list(peers.values()),
        help=f"comma-separated; all of them by default: {', '.join(peers)}",
    )
    parser.add_argument(
        "--workloads",
        type=chosen("workload", CALLS),
        default=list(CALLS),
        help=f"plugins that are run: {', '.join(CALLS)}",
    )
    parser.add_argument(
        "--connections",
        type=counts,
        default=[16, 1, 64, 256],
        help="in flight: the first for each workload, the others for hello (16,1,64,256)",
    )
    parser.add_argument("--rounds", type=positive(int), default=5, help="runs of each server (5)")
    parser.add_argument("--seconds", type=positive(float), default=3.0, help="of each run (3)")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before each run (0.5)")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "results.json", help="JSON file (.bench/results.json)"
    )
    parser.add_argument("--check", action="store_true", help="exit 1 when a figure is not reached")
    return parser.parse_args()


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
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


def others_at_work() -> str:
    """A warning when the machine is not idle before the first server is started; else empty."""
    load = os.getloadavg()[0]
    if load < 0.5:
        return ""
    return (
        f"The load average was {load:.1f} before the first server was started: others were at "
        "work, and the figures say little."
    )


if __name__ == "__main__":
    sys.exit(main())
