"""Where an event's time goes: instructions per event, by function, without the machine's noise.

    python benchmarks/profile.py                              # each workload, both protocols
    python benchmarks/profile.py --only hello/msgpack --top 40
    python benchmarks/profile.py --live                       # user and system time under load
    python benchmarks/profile.py --check                      # against instructions.json
    python benchmarks/profile.py --update                     # write instructions.json

The events run in one process, without sockets: prepared bytes of Kong go into a session, its
answers come out, and callgrind counts the instructions in between. So the kernel's part is not in
the counts, and everything else of kongps is: protocol, dispatch, greenlets, the PDK, the plugin.

Needed besides a C compiler and Python's headers: valgrind with its headers
(Debian and Ubuntu: apt-get install valgrind).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# This file's name is that of a standard module, which others may want to import.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
sys.path.append(str(HERE))

from harness import ROOT, TOOLS, build_tools, load, running  # noqa: E402
from parts import CALLS  # noqa: E402
from peers import all_peers, home_of  # noqa: E402

BASELINE = HERE / "instructions.json"
PROTOCOLS = ("msgpack", "protobuf")
EVENTS = 200
WARMUP = 50
LIMIT = 0.03
"""A count that is more than this above the kept one is worse; two runs differ by far less."""

INSTALL = "apt-get install valgrind (Debian and Ubuntu)"


def main() -> int:
    every = [f"{workload}/{protocol}" for protocol in PROTOCOLS for workload in CALLS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", default=",".join(every), help="such as hello/msgpack,log/protobuf"
    )
    parser.add_argument("--top", type=int, default=25, help="functions shown for each (25)")
    parser.add_argument(
        "--check", action="store_true", help="compare with the counts that are kept"
    )
    parser.add_argument("--update", action="store_true", help="keep these counts")
    parser.add_argument("--live", action="store_true", help="user and system time under load")
    parser.add_argument("--build", action="store_true", help="print what counts depend on, and end")
    options = parser.parse_args()
    chosen = [name for name in options.only.split(",") if name]
    for name in chosen:
        if name not in every:
            parser.error(f"no {name!r}; there are {', '.join(every)}")
    if options.build:
        print(json.dumps(this_build(), indent=1))
        return 0
    if options.live:
        return show_live(chosen)
    kept = find_kept(this_build())
    if options.check and isinstance(kept, str):
        print(f"bench-check: cannot be judged: {kept}")
        return 0
    profiles = count(chosen)
    if options.check:
        assert not isinstance(kept, str)
        return check({name: one["instructions"] for name, one in profiles.items()}, kept)
    for name, one in profiles.items():
        show(name, one, options.top)
    if options.update:
        keep({name: one["instructions"] for name, one in profiles.items()})
    return 0


# --- counting ---------------------------------------------------------------------------------


def count(chosen: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Instructions per event and by function of each ``workload/protocol``."""
    build_tools()
    for tool in ("valgrind", os.environ.get("CC", "cc")):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not there; {INSTALL}, and a C compiler")
    home = ROOT / "profile"
    (home / "plugins").mkdir(parents=True, exist_ok=True)
    for workload in CALLS:
        source = HERE / "workloads" / workload / "kongps.py"
        shutil.copy(source, home / "plugins" / f"{workload}.py")
    answers = subprocess.run([str(TOOLS / "load"), "--answers"], stdout=subprocess.PIPE, check=True)
    (home / "answers.json").write_bytes(answers.stdout)
    build_counting(home)
    with tempfile.TemporaryDirectory(prefix="kongps-profile-", dir="/tmp") as directory:
        out = Path(directory) / "out"
        # By names that are as long wherever the checkout is: the length of a path decides where
        # things lie in memory, and that was up to 5 % of the instructions, in malloc.
        (Path(directory) / "home").symlink_to(home)
        (Path(directory) / "src").symlink_to(HERE.parent / "src")
        (Path(directory) / "benchmarks").symlink_to(HERE)
        command = [
            "valgrind",
            "--tool=callgrind",
            "--instr-atstart=no",
            "--collect-atstart=no",
            f"--callgrind-out-file={out}",
            sys.executable,
            f"{directory}/benchmarks/counted_events.py",
            f"{directory}/home",
            str(EVENTS),
            str(WARMUP),
            *chosen,
        ]
        done = subprocess.run(
            command,
            cwd=directory,
            # Nothing of the caller's environment: what it says would change the counts.
            env={
                "PATH": os.environ.get("PATH", ""),
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": f"{directory}/src",
                "PYTHONDONTWRITEBYTECODE": "1",
                "LC_ALL": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"the counted run failed:\n{done.stderr[-3000:]}")
        report = json.loads(done.stdout)
        found = dict(read_callgrind(path) for path in Path(directory).glob("out*"))
    nothing = found["nothing"]
    profiles = {}
    for name in chosen:
        expected = CALLS[name.split("/")[0]]
        calls = report[name]["calls"]
        made = {method: calls.count(method) for method in calls}
        if made != expected:
            raise SystemExit(f"{name}: the plugin calls {made}, not {expected}")
        # Less what it costs to enter and leave a session from Python.
        entries = report[name]["feeds"] / EVENTS
        functions = {
            key: (cost - nothing.get(key, 0) * entries) / EVENTS
            for key, cost in found[name].items()
        }
        profiles[name] = {
            "instructions": round(sum(functions.values())),
            "functions": {key: cost for key, cost in functions.items() if abs(cost) >= 0.5},
        }
    return profiles


def build_counting(home: Path) -> None:
    source = HERE / "counting.c"
    target = home / f"counting{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists() and target.stat().st_mtime > source.stat().st_mtime:
        return
    include = sysconfig.get_path("include")
    command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", f"-I{include}"]
    if subprocess.run([*command, "-o", str(target), str(source)], check=False).returncode:
        raise SystemExit(f"{source.name} does not compile; it needs valgrind's headers: {INSTALL}")


def read_callgrind(path: Path) -> tuple[str, dict[tuple[str, str], int]]:
    """One dump of callgrind: its name, and the cost of each (function, object) itself."""
    names: dict[str, str] = {}
    objects: dict[str, str] = {}
    costs: dict[tuple[str, str], int] = {}
    title, skip, here, where = "", False, "", ""

    def compressed(text: str, table: dict[str, str]) -> str:
        found = re.match(r"\((\d+)\)(?: (.*))?", text)
        if not found:
            return text
        if found.group(2) is not None:
            table[found.group(1)] = found.group(2)
        return table.get(found.group(1), "?")

    with path.open(errors="replace") as lines:
        for line in lines:
            line = line.rstrip("\n")
            if line.startswith("desc: Trigger: Client Request: "):
                title = line.rsplit(": ", 1)[1]
            elif line.startswith("fn="):
                here = re.sub(r"'\d+$", "", compressed(line[3:], names))  # a level of recursion
            elif line.startswith("ob="):
                where = compressed(line[3:], objects)
            elif line.startswith(("cfn=", "cfi=", "cfl=")):
                if line.startswith("cfn="):
                    compressed(line[4:], names)
            elif line.startswith("cob="):
                compressed(line[4:], objects)
            elif line.startswith("calls="):
                skip = True  # the next line has the cost of what was called
            elif line and (line[0].isdigit() or line[0] in "+-*"):
                if skip:
                    skip = False
                    continue
                parts = line.split()
                if len(parts) > 1:
                    key = (here, where)
                    costs[key] = costs.get(key, 0) + int(parts[1])
    return title, costs


# --- showing ----------------------------------------------------------------------------------


def show(name: str, one: dict[str, Any], top: int) -> None:
    total = one["instructions"]
    print(f"\n{name}: {total:,} instructions per event")
    groups: dict[str, float] = {}
    for (function, where), cost in one["functions"].items():
        key = part_of(function, where)
        groups[key] = groups.get(key, 0) + cost
    for key, cost in sorted(groups.items(), key=lambda row: -row[1]):
        if cost >= 0.5:
            print(f"  {cost:>10,.0f} {cost / max(total, 1):>6.1%}  {key}")
    print("  by function:")
    ranked = sorted(one["functions"].items(), key=lambda row: -row[1])
    for (function, where), cost in ranked[:top]:
        label = f"{readable(function)}  [{Path(where).name.split('.')[0]}]"
        print(f"  {cost:>10,.0f} {cost / max(total, 1):>6.1%}  {label}")


def part_of(function: str, where: str) -> str:
    file = Path(where).name
    if "/kongps/core/" in where:
        return f"kongps core: {file.split('.')[0]}"
    if "greenlet" in file:
        return "greenlet"
    if "msgspec" in file:
        return "msgspec"
    if file.startswith(("libc", "ld-")):
        return "libc"
    if "python" in file:
        return "CPython"
    return file or "?"


def readable(function: str) -> str:
    """``__pyx_f_6kongps_4core_8dispatch_5Event_ask`` as ``dispatch.Event.ask``."""
    found = re.match(r"__pyx_(?:f|pw|pf|tp|getprop|setprop)_(?:\w+?_)??(\d.*)", function)
    if not found:
        return function
    rest, parts = found.group(1), []
    while True:
        head = re.match(r"_?(\d+)", rest)
        if not head:
            break
        size = int(head.group(1))
        start = head.end()
        if rest[start + size : start + size + 1] not in ("", "_") or not size:
            rest = rest[start:]  # not the length of a name, but the number of a method
            break
        parts.append(rest[start : start + size])
        rest = rest[start + size :]
    parts.append(rest.lstrip("_"))
    return ".".join(part for part in parts if part not in ("kongps", "core", ""))


def show_live(chosen: Sequence[str]) -> int:
    """User and system time per event under load, beside the floor's, which is all sockets."""
    build_tools()
    peers = all_peers(TOOLS)
    print("microseconds of the server per event, 16 connections (user + system)")
    for name in chosen:
        workload, protocol = name.split("/")
        suffix = "" if protocol == "msgpack" else f"-{protocol}"
        cells = []
        for server_name in (f"kongps{suffix}", f"floor{suffix}"):
            peer = peers[server_name]
            peer.prepare(home_of(peer, ROOT), workload)
            with running(peer, workload) as server:
                report = load(server, ["--seconds", "2"])
            events = max(report["events"], 1)
            user = report["server"]["cpu_user_seconds"] * 1e6 / events
            system = report["server"]["cpu_system_seconds"] * 1e6 / events
            cells.append(f"{server_name} {user:5.1f} + {system:5.1f}")
        print(f"  {name:18} {cells[0]:28} {cells[1]}")
    return 0


# --- the counts that are kept -----------------------------------------------------------------


def this_build() -> dict[str, str]:
    """What the counts depend on besides our own code. The first three must always be the same."""
    libc = " ".join(part for part in platform.libc_ver() if part)
    valgrind = (
        subprocess.run(["valgrind", "--version"], stdout=subprocess.PIPE, text=True, check=False)
        if shutil.which("valgrind")
        else None
    )
    return {
        "implementation": platform.python_implementation(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "architecture": platform.machine(),
        "compiler of Python": platform.python_compiler(),
        "options of Python": str(sysconfig.get_config_var("PY_CFLAGS") or ""),
        "shared": str(bool(sysconfig.get_config_var("Py_ENABLE_SHARED"))),
        "greenlet": metadata.version("greenlet"),
        "libc": libc,
        "valgrind": valgrind.stdout.strip() if valgrind else "",
    }


def find_kept(build: dict[str, str]) -> dict[str, int] | str:
    """The counts kept for a build like this one, or why there are none to compare with."""
    rows = json.loads(BASELINE.read_text())["builds"] if BASELINE.exists() else []
    nearest: list[str] | None = None
    for row in rows:
        different = [key for key, value in build.items() if row["build"].get(key) != value]
        if not different:
            return {str(name): int(value) for name, value in row["instructions"].items()}
        if nearest is None or len(different) < len(nearest):
            nearest = different
    here = f"{build['implementation']} {build['python']} on {build['architecture']}"
    if nearest is None:
        return f"no counts are kept in {BASELINE.name}"
    return f"{BASELINE.name} has no counts of this {here}; different: {', '.join(nearest)}"


def check(counts: dict[str, int], kept: dict[str, int]) -> int:
    worse = 0
    for name, value in counts.items():
        before = kept.get(name)
        if before is None:
            print(f"{name:18} {value:>10,}  (no count is kept)")
            continue
        change = value / before - 1
        state = "WORSE" if change > LIMIT else "better" if change < -LIMIT else "the same"
        worse += change > LIMIT
        print(f"{name:18} {value:>10,}  kept {before:>10,}  {change:+7.2%}  {state}")
    if worse:
        print(f"bench-check: {worse} of {len(counts)} are more than {LIMIT:.0%} worse")
        print("where it goes: python benchmarks/profile.py --only …; if it has to be so: --update")
    return 1 if worse else 0


def keep(counts: dict[str, int]) -> None:
    build = this_build()
    data = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"builds": []}
    rows = [row for row in data["builds"] if row["build"] == build]
    if not rows:
        rows = [{"build": build, "instructions": {}}]
        data["builds"].append(rows[0])
    rows[0]["instructions"].update(counts)
    data["about"] = (
        "Instructions per event, without the kernel's; written by `profile.py --update`, compared "
        "by `make bench-check` on builds that are the same in every point."
    )
    BASELINE.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main())
