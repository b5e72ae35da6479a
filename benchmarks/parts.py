"""What is measured: events, how they scale, starts, memory. ``run.py`` puts the parts together."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from harness import ROOT, environment_of, load, run_directory, running
from peers import Kongps, MissingPeer, Peer, home_of

Report = dict[str, Any]

# The PDK calls of one event, by workload: a server that makes others does not do the workload.
CALLS: dict[str, dict[str, int]] = {
    "empty": {},
    "hello": {"kong.request.get_header": 1, "kong.response.set_header": 2},
    "headers": {"kong.request.get_headers": 1, "kong.response.set_header": 5},
    "auth": {"kong.client.load_consumer": 1, "kong.response.exit": 1},
    "log": {"kong.log.serialize": 1},
    "body": {"kong.request.get_raw_body": 1, "kong.service.request.set_raw_body": 1},
    "compute": {"kong.response.set_header": 1},
}

# Bytes that one event must at least bring from the server.
LEAST_BYTES = {"body": 65536}

SCALE = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
INSTANCES = (1, 100, 10_000)
IN_FLIGHT = 1000

# Modes of one server that start in the same way, or would do nothing new in a part.
ONE_MODE_OF_EACH = ("kong-python-pdk-threads", "kong-python-pdk-multiprocessing")


@dataclass
class Settings:
    rounds: int = 5
    seconds: float = 3.0
    warmup: float = 0.5
    connections: int = 16


@dataclass
class Cell:
    """One workload at one number of connections: the runs of each server."""

    workload: str
    connections: int
    move: bool
    runs: dict[str, list[Report]] = field(default_factory=dict)


class Results:
    """All that was measured, and what could not be."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self.peers = list(peers)
        self.cells: list[Cell] = []
        self.missing: dict[str, str] = {}
        self.problems: dict[str, list[str]] = {}
        self.scaling: dict[str, list[tuple[int, float, float]]] = {}
        self.dump: dict[str, list[float]] = {}
        self.start: dict[str, list[float]] = {}
        self.memory: dict[str, Report] = {}
        self.workers: dict[str, Report] = {}
        self._prepared: set[tuple[str, str]] = set()

    def ready(self, workload: str) -> list[Peer]:
        """The peers that the workload can be run on; the others are noted as missing."""
        ready = []
        for peer in self.peers:
            if self.is_missing(peer, workload):
                continue
            if (peer.name, workload) not in self._prepared:
                say(f"setting up {peer.name} for {workload}")
                try:
                    peer.prepare(home_of(peer, ROOT), workload)
                except MissingPeer as absent:
                    self.lack(peer, workload, str(absent))
                    continue
                self._prepared.add((peer.name, workload))
            ready.append(peer)
        return ready

    def is_missing(self, peer: Peer, workload: str) -> bool:
        return f"{peer.name}, {workload}" in self.missing

    def lack(self, peer: Peer, workload: str, reason: str) -> None:
        say(f"{peer.name}, {workload}: missing: {reason}")
        self.missing[f"{peer.name}, {workload}"] = reason

    def trouble(self, peer: Peer, what: str, found: Iterable[str]) -> None:
        rows = self.problems.setdefault(f"{peer.name}, {what}", [])
        rows.extend(problem for problem in found if problem not in rows)

    def as_json(self) -> Report:
        return {
            "versions": {peer.name: peer.versions() for peer in self.peers},
            "labels": {peer.name: f"{peer.name} {peer.version}".strip() for peer in self.peers},
            "protocols": {peer.name: peer.protocol for peer in self.peers},
            "notes": {peer.name: list(peer.notes) for peer in self.peers if peer.notes},
            "missing": self.missing,
            "problems": {key: rows for key, rows in self.problems.items() if rows},
            "cells": [
                {
                    "workload": cell.workload,
                    "connections": cell.connections,
                    "move_steps": cell.move,
                    "summary": {name: summarize(runs) for name, runs in cell.runs.items() if runs},
                    "ratios": ratios(cell.runs),
                    "runs": cell.runs,
                }
                for cell in self.cells
            ],
            "scaling": {
                name: [
                    {"connections": count, "events_per_second": speed, "p99_us": p99}
                    for count, speed, p99 in rows
                ]
                for name, rows in self.scaling.items()
            },
            "dump_ms": {name: spread(values) for name, values in self.dump.items() if values},
            "first_answer_ms": {
                name: spread(values) for name, values in self.start.items() if values
            },
            "memory": self.memory,
            "workers": self.workers,
        }


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def turned(peers: Sequence[Peer], round_: int) -> list[Peer]:
    turn = round_ % len(peers) if peers else 0
    return [*peers[turn:], *peers[:turn]]


# --- events -----------------------------------------------------------------------------------


def measure_events(
    results: Results, settings: Settings, workload: str, connections: int, move: bool = False
) -> None:
    cell = Cell(workload, connections, move)
    results.cells.append(cell)
    peers = [peer for peer in results.ready(workload) if not (move and peer.protocol != "msgpack")]
    what = f"{workload}, {connections} connections{', moving' if move else ''}"
    options = ["--connections", str(connections), "--seconds", str(settings.seconds)]
    options += ["--warmup", str(settings.warmup), *(["--move-steps"] if move else [])]
    for peer in peers:
        cell.runs[peer.name] = []
    for round_ in range(settings.rounds):
        for peer in turned(peers, round_):
            if results.is_missing(peer, workload):
                continue
            say(f"{what}, round {round_ + 1} of {settings.rounds}: {peer.name}", end="")
            try:
                report = measure(peer, workload, options)
            except MissingPeer as absent:
                say("")
                results.lack(peer, workload, str(absent))
                continue
            say(f" {report['events_per_second']:,.0f} events/s")
            cell.runs[peer.name].append(report)
            results.trouble(peer, what, find_problems(report, workload))


def measure(peer: Peer, workload: str, options: Sequence[str]) -> Report:
    """One run; a server that completes no event cannot do the workload."""
    with running(peer, workload) as server:
        report = load(server, options)
    if not report["events"] and not report["held_events"]:
        raise MissingPeer(f"no event was completed: {', '.join(report['errors'])}")
    return report


def find_problems(report: Report, workload: str) -> list[str]:
    """What makes a run worthless: errors of the driver, or calls that are not the workload's."""
    found = [f"error: {name}" for name in report["errors"]]
    events = report["events"]
    # Events that the window's edges cut in two make a few calls more or fewer.
    slack = 8 * report["connections"]
    expected = CALLS[workload]
    for method in {*expected, *report["calls"]}:
        calls, per_event = report["calls"].get(method, 0), expected.get(method, 0)
        if abs(calls - per_event * events) > slack:
            found.append(f"{method}: {calls / max(events, 1):.2f} calls per event, not {per_event}")
    # The body of an event that the window's end cut off may be missing.
    if report["bytes_per_event"] < LEAST_BYTES.get(workload, 0) * 0.9:
        found.append(f"only {report['bytes_per_event']:,.0f} bytes came per event")
    return found


def measure_workers(results: Results, settings: Settings) -> None:
    """Two workers next to one process, on a handler with 0.2 ms of Python.

    Over MsgPack:1 each step comes on another connection than the one before.
    """
    for protocol in ("msgpack", "protobuf"):
        runs: dict[int, list[Report]] = {1: [], 2: []}
        options = ["--connections", str(settings.connections), "--seconds", str(settings.seconds)]
        options += ["--warmup", str(settings.warmup)]
        options += ["--move-steps"] if protocol == "msgpack" else []
        for _ in range(settings.rounds):
            for count, found in runs.items():
                peer = Kongps(protocol, f"{count}-workers", ("--workers", str(count)))
                peer.prepare(home_of(peer, ROOT), "compute")
                report = measure(peer, "compute", options)
                say(f"{protocol}, {count} workers: {report['events_per_second']:,.0f} events/s")
                found.append(report)
                results.trouble(peer, "workers", find_problems(report, "compute"))
        pairs = zip(runs[1], runs[2])
        gains = [two["events_per_second"] / one["events_per_second"] for one, two in pairs]
        results.workers[protocol] = {"gain": spread(gains), "runs": runs}
        say(f"{protocol}: two workers over one: {statistics.median(gains):.2f}")


# --- summaries --------------------------------------------------------------------------------


def spread(values: Iterable[float]) -> dict[str, float]:
    """The median with the lowest and the highest."""
    rows = sorted(values)
    return {"median": statistics.median(rows), "min": rows[0], "max": rows[-1]}


READERS: dict[str, Callable[[Report], float]] = {
    "events_per_second": lambda r: float(r["events_per_second"]),
    "cpu_us_per_event": lambda r: float(r["server"]["cpu_us_per_event"]),
    "p50_us": lambda r: float(r["latency_us"]["p50"]),
    "p99_us": lambda r: float(r["latency_us"]["p99"]),
    "p99.9_us": lambda r: float(r["latency_us"]["p99.9"]),
    "rss_kb": lambda r: float(r["server"]["rss_kb"]["after"]),
    "peak_rss_kb": lambda r: float(r["server"]["rss_kb"]["peak"]),
    "driver_cpu_share": lambda r: float(r["driver"]["cpu_share"]),
}


def summarize(runs: Sequence[Report]) -> Report:
    """Each figure of one server over its rounds."""
    return {name: spread(map(read, runs)) for name, read in READERS.items()}


SUBJECTS = ("kongps", "kongps-protobuf", "kongps-threads")


def ratios(runs: dict[str, list[Report]]) -> Report:
    """``{subject: {other: {figure: spread}}}``: ours over theirs, round by round."""
    found: Report = {}
    for subject in SUBJECTS:
        for name, theirs in runs.items():
            pairs = list(zip(runs.get(subject, []), theirs))
            if name in SUBJECTS or not pairs:
                continue
            row = {}
            for figure in ("events_per_second", "p50_us", "p99_us", "cpu_us_per_event"):
                read = READERS[figure]
                values = [read(ours) / read(other) for ours, other in pairs if read(other)]
                if values:
                    row[figure] = spread(values)
            found.setdefault(subject, {})[name] = row
    return found


# --- from 1 to 1,000 connections --------------------------------------------------------------


def measure_scaling(results: Results, settings: Settings) -> None:
    for count in SCALE:
        for peer in results.ready("hello"):
            if peer.name in ONE_MODE_OF_EACH:
                continue
            say(f"scaling, {count} connections: {peer.name}", end="")
            options = ["--connections", str(count), "--seconds", str(min(settings.seconds, 2.0))]
            try:
                report = measure(peer, "hello", [*options, "--warmup", str(settings.warmup)])
            except MissingPeer as absent:
                say("")
                results.trouble(peer, f"scaling, {count} connections", [str(absent)])
                continue
            say(f" {report['events_per_second']:,.0f} events/s")
            results.scaling.setdefault(peer.name, []).append(
                (count, report["events_per_second"], report["latency_us"]["p99"])
            )
            results.trouble(peer, f"scaling, {count} connections", find_problems(report, "hello"))


# --- how long it takes to start ---------------------------------------------------------------


def measure_start(results: Results, settings: Settings) -> None:
    peers = [peer for peer in results.ready("hello") if peer.name != "floor-protobuf"]
    rounds = max(settings.rounds * 2, 3)
    for round_ in range(-1, rounds):  # the first is not counted: modules are compiled, files read
        say(f"starts, round {round_ + 1} of {rounds}")
        for peer in turned(peers, round_):
            with contextlib.suppress(MissingPeer):
                dumps: list[float] = []
                if peer.name not in (*ONE_MODE_OF_EACH, "kongps-protobuf"):
                    dumps.extend(dump_times(peer, "hello"))
                started = first_answer(peer, "hello")
                if round_ >= 0:
                    results.dump.setdefault(peer.name, []).extend(dumps)
                    results.start.setdefault(peer.name, []).append(started)


def dump_times(peer: Peer, workload: str) -> Iterator[float]:
    """Milliseconds that the command Kong asks for plugins takes; nothing for a peer without."""
    with run_directory() as run:
        argv = peer.dump(home_of(peer, ROOT), run, workload)
        if argv is None:
            return
        began = time.monotonic()
        done = subprocess.run(
            argv,
            cwd=run,
            env=environment_of(peer),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        took = time.monotonic() - began
    if done.returncode or workload.encode() not in done.stdout:
        raise MissingPeer(f"{argv[0]} did not dump the plugin {workload}")
    yield took * 1000


def first_answer(peer: Peer, workload: str) -> float:
    """Milliseconds from the start of the process until its first event has ended."""
    with running(peer, workload, wait=False) as server:
        report = load(server, ["--connections", "1", "--events", "1", "--warmup", "0"])
    if not report["first_event_at"]:
        raise MissingPeer(f"no event was completed: {', '.join(report['errors'])}")
    return (float(report["first_event_at"]) - server.started) * 1000


# --- memory -----------------------------------------------------------------------------------


def measure_memory(results: Results) -> None:
    for peer in results.ready("hello"):
        row: Report = {"instances": {}, "events_in_flight": {}}
        say(f"memory: {peer.name}")
        errors: list[str] = []
        try:
            for count in INSTANCES:
                options = ["--instances", str(count), "--connections", "1", "--warmup", "0"]
                report = measure(peer, "hello", [*options, "--events", "1", "--timeout", "60"])
                errors += report["errors"]
                row["instances"][str(count)] = memory_of(report, "instances")
            # A warm-up before the hold would be answered; the events that are held are the first.
            options = ["--connections", str(IN_FLIGHT), "--hold", "--warmup", "60"]
            report = measure(peer, "hello", options)
            # A server that runs fewer at once lets the others wait: no error, the count says it.
            if report["held_events"] >= IN_FLIGHT:
                errors += report["errors"]
            row["events_in_flight"][str(report["held_events"])] = memory_of(report, "after")
            row["without_events"] = memory_of(report, "instances")
        except MissingPeer as absent:
            errors.append(str(absent))
        results.trouble(peer, "memory", errors)
        results.memory[peer.name] = row


def memory_of(report: Report, when: str) -> dict[str, int]:
    server = report["server"]
    return {"rss_kb": server["rss_kb"][when], "pss_kb": server["pss_kb"][when]}
