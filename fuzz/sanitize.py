"""Runs the tests of the core with the address and the undefined-behaviour sanitizer.

    python fuzz/sanitize.py [TEST…]

The core is the one that ``run.py`` builds; the tests run in a tree of their own in .fuzz, in which
it stands in the place of ``src``, so that the servers that tests start have it too. Then the
corpus runs in rounds in one process, and what is allocated is compared from round to round: each
object and each buffer is allocated by itself (PYTHONMALLOC=malloc), so that one that stays shows.

How the sanitizers are set up, and why:

- Instrumentation of the stack is off. Greenlets copy stacks away and back.
- LeakSanitizer looks at the end of each process. What the interpreter never frees is not ours, and
  neither are the objects that a module keeps until the end: a leak counts when the core is on its
  stack, and the making of a module (``__pyx_pymod_exec``, ``__Pyx_…Const…``) is not.

Exit status: 0 nothing found, 1 something found, 2 what is needed is not there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from run import HERE, LIB, ROOT, SANITIZER_OPTIONS, WORK, Missing, build, compiler, runtime

TREE = WORK / "tree"
REPORTS = WORK / "reports"

# What drives the core; the rest of the suite is about Python code around it.
TESTS = (
    "test_msgpack.py", "test_msgpack_rpc.py", "test_protobuf.py", "test_protobuf_rpc.py",
    "test_dispatch.py", "test_protocols.py", "test_recordings.py", "test_recordings_protobuf.py",
    "test_hostile_plugins.py", "test_server.py", "test_fault_table.py", "test_fault_fuzz.py",
    "test_failing.py", "test_limits.py", "test_asked_once.py", "test_pdk_both_protocols.py",
    "test_thread_handlers.py", "test_async_handlers.py", "test_start_and_close.py",
    "test_stuck_handlers.py", "test_watchdog.py", "test_workers.py", "test_reload.py",
    "test_restarts.py",
)  # fmt: skip

# About speed, memory by the page, or tools: not what they are with sanitizers.
LEFT_OUT = (
    "200_000", "round_trip", "does_not_read", "memory_behind", "cost_no_memory", "thousands_of",
    "can_be_compiled", "native_plugins", "the_types_of",
)  # fmt: skip

# A module keeps these until the process ends.
KEPT_FOR_GOOD = re.compile(r"__pyx_pymod|__Pyx_Init|__Pyx_CreateStringTab|__Pyx_modinit|PyInit_")

ROUNDS = 12
SETTLED = 4  # rounds after which nothing new is cached
GROWTH_BYTES = 4096  # of all rounds after that; a leak of one object an input is far more


def main() -> int:
    if sys.argv[1:2] == ["--rounds"]:
        return rounds()
    try:
        build()
        make_tree()
        shutil.rmtree(REPORTS, ignore_errors=True)
        REPORTS.mkdir()
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
             "-m", "not soak", "-k", " and ".join(f"not {name}" for name in LEFT_OUT),
             *(sys.argv[1:] or (str(next(TREE.glob(f"tests/**/{name}"))) for name in TESTS))],
            cwd=TREE, env=environment(leaks=True),
        ).returncode  # fmt: skip
        found = errors()
        grown = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), "--rounds"],
            # Of the places that CPython 3.11 underlines in a traceback something stays, a little.
            cwd=TREE, env={**environment(leaks=False), "PYTHONNODEBUGRANGES": "1"},
        ).returncode  # fmt: skip
    except Missing as missing:
        print(f"sanitize: {missing}", file=sys.stderr)
        return 2
    for text in found:
        print(text)
    print(f"sanitizers: {len(found)} errors or leaks of the core; tests ended with {status}")
    return 1 if found or status or grown else 0


def make_tree() -> None:
    """The checkout with the instrumented core in place of ``src``."""
    shutil.rmtree(TREE, ignore_errors=True)
    TREE.mkdir(parents=True)
    (TREE / "src").symlink_to(LIB)
    shutil.copytree(ROOT / "tests", TREE / "tests")
    for name in ("docs", "examples", "fuzz", "include", "pyproject.toml", "benchmarks"):
        (TREE / name).symlink_to(ROOT / name)


def environment(*, leaks: bool) -> dict[str, str]:
    options = SANITIZER_OPTIONS["ASAN_OPTIONS"].replace(
        "detect_leaks=0", f"detect_leaks={leaks:d}:log_path={REPORTS / 'report'}"
    )
    return {
        **os.environ,
        **SANITIZER_OPTIONS,
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={REPORTS / 'report'}",
        "LSAN_OPTIONS": "exitcode=0:max_leaks=0:print_suppressions=0",
        "LD_PRELOAD": runtime(compiler(), "asan"),
        "PYTHONPATH": os.pathsep.join(
            (str(TREE / "src"), str(TREE / "tests" / "support"), str(HERE))
        ),
    }


def errors() -> list[str]:
    """What the reports hold that is an error, or a leak with the core on its stack."""
    found = []
    for path in sorted(REPORTS.glob("report*")):
        for part in re.split(r"\n\n", path.read_text(errors="replace")):
            if "runtime error" in part or re.search(r"ERROR: AddressSanitizer", part):
                found.append(part)
            elif " leak of " in part:
                frames = [line for line in part.splitlines() if line.lstrip().startswith("#")]
                ours = any("/kongps/core/" in line for line in frames)
                if ours and not any(KEPT_FOR_GOOD.search(line) for line in frames):
                    found.append(part)
    return found


def rounds() -> int:
    """The corpus in rounds: is more allocated after the last than after an early one?"""
    import ctypes
    import gc
    import logging

    import targets

    logging.disable()
    allocated = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
    allocated.restype = ctypes.c_size_t
    inputs = {
        name: [path.read_bytes() for path in sorted((HERE / "corpus" / name).iterdir())]
        for name in targets.TARGETS
    }
    worst = 0
    for name, function in targets.TARGETS.items():
        readings = []
        for _ in range(ROUNDS):
            for data in inputs[name]:
                function(data)
            gc.collect()
            readings.append(allocated())
        growth = readings[-1] - readings[SETTLED]
        worst = max(worst, growth)
        print(
            f"{name}: {len(inputs[name])} inputs, {ROUNDS - 1 - SETTLED} rounds, "
            f"{growth:+,} bytes allocated"
        )
    return int(worst > GROWTH_BYTES)


if __name__ == "__main__":
    sys.exit(main())
