"""Does a server grow? Its resident memory after many events against that after fewer.

    python benchmarks/memory.py [--peer kongps] [--events 20000,200000] [--limit-kb 1024]

One process, one instance, one run: the driver reads the memory at each of the two counts while the
load goes on. Exit status: 0 within the limit, 1 above it or with errors.
"""

from __future__ import annotations

import argparse
import sys

from harness import ROOT, TOOLS, build_tools, load, running
from peers import MissingPeer, all_peers, home_of


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", default="kongps", help="the server to measure (kongps)")
    parser.add_argument("--workload", default="hello")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--events", default="20000,200000", help="the two counts (20000,200000)")
    parser.add_argument("--limit-kb", type=int, default=1024, help="largest growth (1024)")
    parser.add_argument("--move-steps", action="store_true", help="steps on other connections")
    options = parser.parse_args()

    peers = all_peers(TOOLS)
    if options.peer not in peers:
        parser.error(f"no peer {options.peer!r}; there are {', '.join(peers)}")
    peer = peers[options.peer]
    counts = options.events.split(",")
    if len(counts) != 2 or not all(count.isdigit() for count in counts):
        parser.error("--events wants two counts, such as 20000,200000")

    build_tools()
    arguments = ["--connections", str(options.connections), "--warmup", "0"]
    arguments += ["--events", counts[1], "--rss-at", options.events]
    arguments += ["--move-steps"] if options.move_steps else []
    try:
        peer.prepare(home_of(peer, ROOT), options.workload)
        with running(peer, options.workload) as server:
            report = load(server, arguments)
    except MissingPeer as missing:
        print(f"{peer.name}: {missing}", file=sys.stderr)
        return 1

    for error, count in report["errors"].items():
        print(f"{peer.name}: {error} ({count} times)", file=sys.stderr)
    marks = report["server"]["marks"]
    print(f"{peer.name}, {options.workload}, {options.connections} connections")
    print(f"  before any event    {report['server']['rss_kb']['before']:>10,} KB resident")
    for mark in marks:
        print(f"  after {mark['events']:>9,} events {mark['rss_kb']:>8,} KB resident")
    if report["errors"] or len(marks) != 2:
        return 1
    growth = marks[1]["rss_kb"] - marks[0]["rss_kb"]
    verdict = "within" if growth <= options.limit_kb else "ABOVE"
    print(f"  growth              {growth:>10,} KB, {verdict} the limit of {options.limit_kb:,} KB")
    return 0 if growth <= options.limit_kb else 1


if __name__ == "__main__":
    sys.exit(main())
