"""Fuzzes the core: libFuzzer, the address sanitizer and the undefined-behaviour sanitizer.

    python fuzz/run.py [--inputs 10000000] [--targets sessions,…] [--seconds S]
    python fuzz/run.py --keep          # afterwards, put what is worth keeping into fuzz/corpus
    python fuzz/run.py --reproduce FILE --targets sessions

Everything that is built or found goes to .fuzz/, which git ignores. The core is compiled with
clang into .fuzz/lib; the interpreter is the one that runs this, with libFuzzer and the sanitizer's
library preloaded. Exit status: 0 nothing found, 1 something found,
2 what is needed is not there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / ".fuzz"
LIB = WORK / "lib"
FUZZER = WORK / "libfuzzer.so"
CORPUS = HERE / "corpus"

# How the ten million are shared out: by what untrusted bytes reach, and by cost.
SHARES = {
    "msgpack-codec": 0.35,
    "protobuf-codec": 0.35,
    "msgpack-protocol": 0.12,
    "protobuf-protocol": 0.12,
    "sessions": 0.06,
}

# Bytes. What is longer than a few messages finds nothing that shorter inputs do not.
LONGEST_INPUT = {"sessions": 1024}
LONGEST_OTHER = 400
SLOWEST_SECONDS = 20  # of one input, on a machine that does other things too
MEMORY_MB = 2048

# Instrumentation of the stack is off: greenlets copy stacks away and back, with everything the
# sanitizer would have written around them.
#
# Objects are made by tp_new with a tuple. Cython 3.3's other way passes a __cinit__ without
# arguments a null pointer, to which it adds an offset of 0: nothing, and undefined in C.
SANITIZE = (
    "-fsanitize=address,undefined,fuzzer-no-link", "-fno-sanitize-recover=all",
    "-mllvm", "-asan-stack=0", "-fno-omit-frame-pointer", "-g",
    "-DCYTHON_VECTORCALL_TPNEW=0",
)  # fmt: skip

SANITIZER_OPTIONS = {
    "PYTHONMALLOC": "malloc",  # objects are the sanitizer's, not the interpreter's own arenas'
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Leaks are looked for by `make sanitize`: here libFuzzer ends the process in mid-air.
    "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=64:allocator_may_return_null=1:"
    "detect_stack_use_after_return=0:verify_asan_link_order=0",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


class Missing(Exception):
    """What is needed and not there."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000_000, help="in all (10000000)")
    parser.add_argument("--seconds", type=float, help="stop each target after so long")
    parser.add_argument("--targets", default=",".join(SHARES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="targets at once")
    parser.add_argument("--keep", action="store_true", help="minimise into fuzz/corpus")
    parser.add_argument("--reproduce", metavar="FILE", help="run one input")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options, words = parser.parse_known_args()
    if options.inside:
        inside(options.inside, words)
    targets = options.targets.split(",")
    if unknown := set(targets) - set(SHARES):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(SHARES)}")
    try:
        build()
        if options.reproduce:
            return start(targets[0], [options.reproduce], None).wait()
        seed(targets)
        found = fuzz(targets, options)
        if options.keep and not found:
            for target in targets:
                keep(target)
        return 1 if found else 0
    except Missing as missing:
        print(f"fuzz: {missing}", file=sys.stderr)
        return 2


def compiler() -> str:
    names = [os.environ.get("FUZZ_CC", ""), "clang", *(f"clang-{n}" for n in range(21, 11, -1))]
    for name in filter(None, names):
        if shutil.which(name):
            return name
    raise Missing("no clang; on Debian: apt-get install clang-14 libclang-rt-14-dev")


def runtime(clang: str, name: str) -> str:
    machine = os.uname().machine
    for file in (f"libclang_rt.{name}-{machine}", f"libclang_rt.{name}"):
        for suffix in (".so", ".a"):
            found = subprocess.check_output([clang, f"-print-file-name={file}{suffix}"], text=True)
            if os.path.exists(found.strip()):
                return found.strip()
    raise Missing(f"{clang} has no {name} runtime; on Debian: apt-get install libclang-rt-14-dev")


def build() -> None:
    """Compiles the core and libFuzzer's module, when their sources are newer."""
    clang = compiler()
    sources = [*ROOT.glob("src/pyx/kongps/core/**/*.p*"), HERE / "driver.pyx", ROOT / "setup.py"]
    stamp = WORK / "built"
    if stamp.exists() and stamp.stat().st_mtime < Path(__file__).stat().st_mtime:
        shutil.rmtree(LIB)  # the flags may be others
        stamp.unlink()
    if not (stamp.exists() and stamp.stat().st_mtime > max(s.stat().st_mtime for s in sources)):
        WORK.mkdir(exist_ok=True)
        log = WORK / "build.log"
        print(f"building the core with {clang}; the log is {log.relative_to(ROOT)}")
        core = [sys.executable, "setup.py", "build", "--build-base", str(WORK / "tmp"),
                "--build-lib", str(LIB)]  # fmt: skip
        driver = WORK / "driver.c"
        include = sysconfig.get_path("include")
        fuzzer = runtime(clang, "fuzzer_no_main")
        steps = [
            core,
            [sys.executable, "-m", "cython", "-3", "-I", "src/pyx", str(HERE / "driver.pyx"),
             "-o", str(driver)],
            [clang, "-shared", "-fPIC", "-g", "-O1", f"-I{include}", "-Iinclude", str(driver),
             "-o", str(LIB / "driver.so")],
            [clang, "-shared", "-o", str(FUZZER), "-Wl,--whole-archive", fuzzer,
             "-Wl,--no-whole-archive", "-lstdc++", "-lpthread", "-ldl", "-lm"],
        ]  # fmt: skip
        environment = {
            **os.environ,
            "CC": clang,
            "LDSHARED": f"{clang} -shared",
            "CFLAGS": " ".join((*SANITIZE, "-Wno-unused-command-line-argument")),
        }
        with log.open("w") as out:
            for step in steps:
                done = subprocess.run(step, cwd=ROOT, env=environment, stdout=out, stderr=out)
                if done.returncode:
                    raise Missing(f"the build failed; see {log.relative_to(ROOT)}")
        stamp.touch()
    # Python's half is copied each time: it is what the checkout has.
    for source in ROOT.glob("src/kongps/**/*.py"):
        copy = LIB / source.relative_to(ROOT / "src")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        **SANITIZER_OPTIONS,
        # libFuzzer first: the sanitizer's library has empty functions of the same names.
        "LD_PRELOAD": f"{FUZZER} {runtime(compiler(), 'asan')}",
        "PYTHONPATH": os.pathsep.join((str(LIB), str(ROOT / "tests" / "support"), str(HERE))),
    }


def start(target: str, words: list[str], log: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", target, *words]
    out = log.open("wb") if log else None
    return subprocess.Popen(command, cwd=WORK, env=environment(), stdout=out, stderr=out)


def inside(target: str, words: list[str]) -> None:
    """In the process with the sanitizers: passes a target to libFuzzer."""
    import driver  # type: ignore[import-not-found]

    logging.disable()
    program = f"{sys.executable} {Path(__file__).resolve()} --inside {target}"
    if target.endswith("-codec"):
        import codec_targets

        driver.run(getattr(codec_targets, target.replace("-", "_")), program, words)
    import targets

    targets.exact = driver.exact
    driver.run(targets.TARGETS[target], program, words)


def seed(targets: list[str]) -> None:
    """Writes the recordings as inputs."""
    command = [sys.executable, str(HERE / "seeds.py"), str(WORK / "seeds")]
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests" / "support"), str(HERE)))
    if subprocess.run(command, env={**os.environ, "PYTHONPATH": path}).returncode:
        raise Missing("the recordings could not be read")
    for target in targets:
        for place in (WORK / "corpus", WORK / "found", CORPUS):
            (place / target).mkdir(parents=True, exist_ok=True)


def fuzz(targets: list[str], options: argparse.Namespace) -> int:
    """Runs the targets, some at once.

    :return: how many found something.
    """
    whole = sum(SHARES[target] for target in targets)
    waiting = list(targets)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    report = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            target = waiting.pop(0)
            count = int(options.inputs * SHARES[target] / whole + 1)
            words = [
                str(WORK / "corpus" / target), str(WORK / "seeds" / target),
                str(CORPUS / target), f"-runs={count}", f"-max_len={longest(target)}",
                f"-timeout={SLOWEST_SECONDS}", f"-rss_limit_mb={MEMORY_MB}",
                f"-dict={HERE / 'dictionary.txt'}", "-print_final_stats=1",
                f"-artifact_prefix={WORK / 'found' / target}/",
            ]  # fmt: skip
            if options.seconds:
                words.append(f"-max_total_time={options.seconds:g}")
            print(f"{target}: {count:,} inputs", flush=True)
            running[target] = (start(target, words, WORK / f"{target}.log"), time.monotonic())
        time.sleep(0.2)
        for target, (process, started) in list(running.items()):
            if process.poll() is None:
                continue
            del running[target]
            report[target] = result(target, process.returncode, time.monotonic() - started)
    total = sum(row["inputs"] for row in report.values())
    seconds = sum(row["seconds"] for row in report.values())
    print(f"in all {total:,} inputs, {total / max(seconds, 0.001):,.0f} a second of each process")
    (WORK / "report.json").write_text(json.dumps(report, indent=1))
    return sum(row["status"] != 0 for row in report.values())


def longest(target: str) -> int:
    return LONGEST_INPUT.get(target, LONGEST_OTHER)


def result(target: str, status: int, seconds: float) -> dict[str, float]:
    log = WORK / f"{target}.log"
    text = log.read_text(errors="replace")
    counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", text)
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text) or [("0", "0", "0")]
    row = {
        "inputs": int(counted[1]) if counted else 0, "seconds": round(seconds, 1),
        "edges": int(covered[-1][0]), "features": int(covered[-1][1]),
        "corpus": int(covered[-1][2]), "status": status,
    }  # fmt: skip
    print(
        f"{target}: {row['inputs']:,} inputs in {seconds:,.0f} s, {row['edges']:,} edges, "
        f"{row['corpus']:,} inputs in the corpus, "
        + ("nothing found" if not status else f"FOUND SOMETHING, see {log.relative_to(ROOT)}"),
        flush=True,
    )
    return row


def keep(target: str) -> None:
    """Makes fuzz/corpus the smallest set of inputs that covers what has been covered."""
    merged = WORK / "merged" / target
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    words = ["-merge=1", f"-max_len={longest(target)}", str(merged)]
    words += [str(place / target) for place in (WORK / "seeds", CORPUS, WORK / "corpus")]
    if start(target, words, WORK / f"{target}-merge.log").wait():
        raise Missing(f"{target}: the corpus could not be minimised, see {target}-merge.log")
    shutil.rmtree(CORPUS / target)
    shutil.copytree(merged, CORPUS / target)
    print(f"{target}: {len(list((CORPUS / target).iterdir()))} inputs kept")


if __name__ == "__main__":
    sys.exit(main())
