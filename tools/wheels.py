"""Builds a wheel for every CPython on this machine, and tries each in a clean environment.

``python tools/wheels.py [--output DIR] [--only VERSION…]``. Of each wheel it runs the demo; then it
puts a wheel onto the path of another Python by hand, and has one Python build a plugin that all
others are to load: each must say what is wrong, and the command that it names must mend it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from interpreters import installed

ROOT = Path(__file__).parents[1]

PLUGIN = """\
class Plugin:
    message: str = "hello"

    def access(self, kong):
        kong.response.set_header("x-greeting", self.message)
"""

QUIET = ["--quiet", "--disable-pip-version-check"]


def run(*command: object, cwd: Path | None = None) -> str:
    """Runs a command that has to end well; gives what it printed."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def say(text: str) -> None:
    print(text, flush=True)


def build_wheels(pythons: dict[str, str], output: Path, work: Path) -> dict[str, Path]:
    """A wheel for each Python, from one sdist."""
    tools = work / "tools"
    run(sys.executable, "-m", "venv", tools)
    pip = [tools / "bin" / "python", "-m", "pip", "install", *QUIET]
    run(*pip, "build>=1,<2")
    run(tools / "bin" / "python", "-m", "build", "--sdist", "--outdir", output, ROOT)
    (sdist,) = output.glob("*.tar.gz")
    wheels = {}
    for version, python in pythons.items():
        run(python, "-m", "venv", work / version)
        mine = work / version / "bin" / "python"
        run(mine, "-m", "pip", "install", *QUIET, "--upgrade", "pip")
        run(mine, "-m", "pip", "wheel", *QUIET, "--no-deps", "-w", output, sdist)
        tag = f"-cp{version.replace('.', '')}-"
        (wheels[version],) = (each for each in output.glob("*.whl") if tag in each.name)
        say(f"{version}: {wheels[version].name}")
    return wheels


def try_wheels(wheels: dict[str, Path], work: Path) -> None:
    """Installs each wheel into its environment and runs the demo there."""
    for version, wheel in wheels.items():
        mine = work / version / "bin"
        run(mine / "python", "-m", "pip", "install", *QUIET, f"{wheel}[build]")
        shown = run(mine / "kongps", "demo", cwd=work)
        run(mine / "kongps", "doctor", cwd=work)
        say(f"{version}: demo and doctor run, {len(shown.splitlines())} lines")


def try_a_wrong_core(wheels: dict[str, Path], work: Path) -> None:
    """Unpacks a wheel onto the path of another Python."""
    versions = list(wheels)
    for version, other in zip(versions, versions[1:] + versions[:1]):
        place = work / f"unpacked-{version}"
        with zipfile.ZipFile(wheels[version]) as wheel:
            wheel.extractall(place)
        done = subprocess.run(
            [work / other / "bin" / "python", "-c", "import kongps"],
            env={**os.environ, "PYTHONPATH": str(place)}, capture_output=True, text=True,
        )  # fmt: skip
        last = done.stderr.strip().splitlines()[-1] if done.stderr else ""
        wanted = (f"cpython-{version.replace('.', '')}-", f"CPython {other}.", "pip install")
        if done.returncode != 1 or not all(each in last for each in wanted):
            raise SystemExit(f"{other} with the core of {version} said: {done.stderr}")
        say(f"{other} with the core of {version}: {last}")


def try_plugins(versions: list[str], work: Path) -> None:
    """Builds a plugin with each Python and loads it with each other one."""
    source = work / "hello.py"
    source.write_text(PLUGIN)
    for version in versions:
        for other in versions:
            plugins = work / f"plugins-{version}-{other}"
            if other == version:
                continue
            run(work / version / "bin" / "kongps", "build", source, "-o", plugins)
            dump = [work / other / "bin" / "kongps", "dump", "--plugins-directory", plugins]
            refused = subprocess.run(dump, capture_output=True, text=True)
            line = refused.stderr.strip()
            named = all(f"CPython {each}." in line for each in (version, other))
            if refused.returncode != 1 or not named:
                raise SystemExit(f"{other} loading a plugin of {version} said: {line}")
            command = line.partition("mend it with: ")[2]
            run("/bin/sh", "-c", command)
            names = [each["Name"] for each in json.loads(run(*dump))["Plugins"]]
            if names != ["hello"]:
                raise SystemExit(f"{command} did not mend it")
            say(f"built by {version}, loaded by {other}: refused, mended with: {command}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="where wheels go (dist)")
    parser.add_argument("--only", nargs="+", metavar="VERSION", help="such as 3.9 3.13")
    options = parser.parse_args()
    pythons = {
        version: python
        for version, python in installed().items()
        if not options.only or version in options.only
    }
    if not pythons:
        raise SystemExit("there is no CPython with headers on this machine")
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="kongps-wheels-") as place:
        work = Path(place)
        wheels = build_wheels(pythons, options.output.resolve(), work)
        try_wheels(wheels, work)
        if len(wheels) > 1:
            try_a_wrong_core(wheels, work)
            try_plugins(list(wheels), work)
        else:
            say("there is one CPython here: nothing to try against another")


if __name__ == "__main__":
    main()
