"""The benchmarks' tools: the driver and the floor run, and figures are judged as they should be."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.append(str(BENCHMARKS))  # last: profile.py there must not hide the standard module

import figures  # noqa: E402
import parts  # noqa: E402
import tables  # noqa: E402

PROTOCOLS = ("msgpack", "protobuf")


def load_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver and the floor, compiled with every warning an error."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("tools")
    for name in ("load", "floor"):
        flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Wshadow", "-Werror"]
        source = str(BENCHMARKS / f"{name}.c")
        subprocess.run(["cc", *flags, "-o", str(directory / name), source], check=True)
    return directory


class Served:
    """A server under the driver."""

    def __init__(self, tools: Path, command: list[str], socket: Path, protocol: str) -> None:
        self.driver = [str(tools / "load"), "--socket", str(socket), "--protocol", protocol]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while not socket.exists() and time.monotonic() < end:
            time.sleep(0.01)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # it would wait for the events that are held
        self.process.wait()

    def load(self, *options: str) -> dict[str, Any]:
        command = [*self.driver, "--pid", str(self.process.pid), "--warmup", "0", *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=60)
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def floor(tools: Path, directory: Path, protocol: str, workload: str) -> Served:
    socket = directory / "floor.sock"
    command = [str(tools / "floor"), str(socket), protocol, workload]
    return Served(tools, command, socket, protocol)


def kongps(tools: Path, directory: Path, protocol: str, workload: str) -> Served:
    plugins = directory / "plugins"
    plugins.mkdir()
    shutil.copy(BENCHMARKS / "workloads" / workload / "kongps.py", plugins / f"{workload}.py")
    socket = directory / "kongps.sock"
    command = [sys.executable, "-m", "kongps", "serve", "--plugins-directory", str(plugins)]
    return Served(tools, [*command, "--socket", str(socket)], socket, protocol)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("workload", parts.CALLS)
@pytest.mark.parametrize("server", [floor, kongps], ids=["floor", "kongps"])
def test_each_workload_runs_with_its_calls(
    server: Any, workload: str, protocol: str, tools: Path, short_path: Path
) -> None:
    phase = "log" if workload == "log" else "access"
    with server(tools, short_path, protocol, workload) as served:
        report = served.load("--plugin", workload, "--event", phase, "--events", "400")
    assert report["events"] >= 400
    assert parts.find_problems(report, workload) == []


def test_steps_move_between_connections(tools: Path, short_path: Path) -> None:
    with kongps(tools, short_path, "msgpack", "hello") as served:
        report = served.load("--move-steps", "--events", "400")
    assert parts.find_problems(report, "hello") == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_events_are_held_and_instances_are_many(
    protocol: str, tools: Path, short_path: Path
) -> None:
    with kongps(tools, short_path, protocol, "hello") as served:
        report = served.load("--instances", "50", "--connections", "40", "--hold")
    assert report["instances"] == 50
    assert report["held_events"] == 40
    assert report["errors"] == {}
    assert report["server"]["rss_kb"]["after"] > 0


def test_every_workload_is_written_for_every_server() -> None:
    flavours = {path.name for path in (BENCHMARKS / "workloads" / "hello").iterdir()}
    for workload in parts.CALLS:
        assert flavours <= {path.name for path in (BENCHMARKS / "workloads" / workload).iterdir()}


# --- figures ----------------------------------------------------------------------------------


def a_report(speed: float, p99: float = 100.0) -> dict[str, Any]:
    return {
        "events_per_second": speed,
        "latency_us": {"p50": p99 / 2, "p99": p99, "p99.9": p99 * 2},
        "server": {"cpu_us_per_event": 1e6 / speed, "rss_kb": {"after": 20480, "peak": 20480}},
        "driver": {"cpu_share": 0.5},
    }


def measured(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    results = parts.Results([])
    results.cells.append(parts.Cell("hello", 16, False, runs))
    return {**results.as_json(), "protocols": dict.fromkeys(runs, "msgpack")}


def judged(data: dict[str, Any], what: str) -> dict[str, Any]:
    return next(row for row in figures.judge(data) if row["what"].startswith(what))


def test_a_ratio_is_taken_round_by_round() -> None:
    data = measured(
        {
            "kongps": [a_report(50.0), a_report(80.0), a_report(60.0)],
            "floor": [a_report(100.0), a_report(100.0), a_report(200.0)],
        }
    )
    row = judged(data, "MsgPack:1 events/s over the floor")
    assert (row["median"], row["min"], row["max"]) == (0.5, 0.3, 0.8)
    assert row["reached"] is True
    assert "0.50 (0.30 - 0.80)" in tables.text_table(tables.ratio_table(data))


def test_a_figure_that_is_missed_or_was_not_measured() -> None:
    data = measured({"kongps": [a_report(10.0)], "go-pluginserver": [a_report(5.0)]})
    assert judged(data, "MsgPack:1 events/s over go-pluginserver")["reached"] is False
    assert judged(data, "MsgPack:1 events/s over the floor")["reached"] is None
    assert judged(data, "CPU time")["reached"] is None


def test_the_best_mode_of_kong_python_pdk_needs_all_three() -> None:
    runs = {
        "kongps": [a_report(700.0)],
        "kong-python-pdk-gevent": [a_report(100.0)],
        "kong-python-pdk-threads": [a_report(20.0)],
    }
    what = "MsgPack:1 events/s over kong-python-pdk"
    assert judged(measured(runs), what)["reached"] is None
    runs["kong-python-pdk-multiprocessing"] = [a_report(50.0)]
    assert judged(measured(runs), what)["median"] == 7.0


def test_calls_that_are_not_the_workload_s_are_a_problem() -> None:
    report = {
        "errors": {},
        "events": 1000,
        "connections": 1,
        "bytes_per_event": 100.0,
        "calls": {"kong.request.get_header": 1000, "kong.response.set_header": 1000},
    }
    assert parts.find_problems(report, "hello") == [
        "kong.response.set_header: 1.00 calls per event, not 2"
    ]


# --- instructions -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def profile() -> ModuleType:
    return load_module("profile")


def test_a_count_is_worse_above_three_per_cent(
    profile: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert profile.check({"hello/msgpack": 1029}, {"hello/msgpack": 1000}) == 0
    assert profile.check({"hello/msgpack": 1031}, {"hello/msgpack": 1000}) == 1
    assert "WORSE" in capsys.readouterr().out


def test_another_build_cannot_be_judged(
    profile: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "BASELINE", tmp_path / "instructions.json")
    build = profile.this_build()
    assert "no counts are kept" in profile.find_kept(build)
    profile.keep({"hello/msgpack": 1000})
    assert profile.find_kept(build) == {"hello/msgpack": 1000}
    said = profile.find_kept({**build, "python": "3.99"})
    assert said.endswith("different: python")


def test_callgrind_s_file_is_read(profile: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "out.1"
    path.write_text(
        "desc: Trigger: Client Request: hello/msgpack\n"
        "events: Ir\n"
        "ob=(1) /lib/one.so\nfn=(1) first\n10 100\n+2 5\n"
        "cob=(2) /lib/two.so\ncfn=(2) second\ncalls=3 20\n12 900\n"
        "ob=(2)\nfn=(2)\n20 300\nfn=(3) second'2\n21 1\nfn=(1)\n22 7\n"
    )
    assert profile.read_callgrind(path) == (
        "hello/msgpack",
        {
            ("first", "/lib/one.so"): 105,
            ("second", "/lib/two.so"): 301,  # both levels of a recursion
            ("first", "/lib/two.so"): 7,
        },
    )


def test_names_of_compiled_functions_are_readable(profile: ModuleType) -> None:
    names = {
        "__pyx_f_6kongps_4core_8dispatch_5Event_ask": "dispatch.Event.ask",
        "__pyx_pw_6kongps_4core_7session_7Session_5receive_data": "session.Session.receive_data",
        "_PyEval_EvalFrameDefault": "_PyEval_EvalFrameDefault",
    }
    for name, expected in names.items():
        assert profile.readable(name) == expected
