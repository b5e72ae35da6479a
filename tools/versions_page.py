"""Writes docs/versions.md from the exception classes of kongps.errors."""

from __future__ import annotations

from pathlib import Path

from kongps import errors
from kongps._version import PLUGIN_API

PAGE = Path(__file__).parents[1] / "docs" / "versions.md"

HEAD = """\
<!-- Made by `make docs` from the classes in kongps.errors; change it there. -->

# What must match what

A plugin in Python source runs on every Python that kongps supports. A compiled plugin was built
for a certain Python version, machine, C library and plugin API. kongps checks all of that before it
loads the file, from the file's name, its ELF headers, and the record that `kongps build` has
written into it. A plugin that does not match is not loaded, while the others are served. The
message says which file it is, what it was built for, what is running, and how to fix it:

    plugin 'hello': …/hello.cpython-310-x86_64-linux-gnu.so was compiled for another Python: it is
    built for CPython 3.10.13 (cpython-310-x86_64-linux-gnu); running is CPython 3.12.1
    (cpython-312-x86_64-linux-gnu); fix it with: /usr/bin/python3.12 -m kongps rebuild …

`kongps dump` prints it on stderr, and Kong shows that when it starts. `kongps rebuild DIR` compiles
again every plugin whose source is available; `kongps rebuild --check DIR` only reports. `kongps
doctor` lists everything that is wrong, and how to fix it.

| | compiled Python plugin | native plugin |
| --- | --- | --- |
| Python version and implementation | must match | any |
| debug or free-threaded build | must match | any |
| processor and C library | must match | must match |
| glibc | at least as new as where it was built | at least as new as where it was built |
| plugin API (this kongps: {api}) | must match | must match |
| version of Cython and of the compiler | any | any |

## The errors

All are classes of `kongps.errors` and derive from `CompatError`, a `kongps.PluginError`.

| class | what it says | what must match | fixed by |
| --- | --- | --- | --- |
"""

TAIL = """
## What is recorded

`kongps build` writes a record into each file, in the section `kongps_build`: the plugin's name, the
Python version, implementation and ABI tag, debug and free-threaded build, machine, C library,
Cython, compiler, the versions of kongps and of its plugin API, the source's path relative to the
plugins directory, and its SHA-256. To read it: `python -c "from kongps.compiled.sources import
read_record; print(read_record('hello.so'))"`. The core's own modules have the same record.

A source outside the plugins directory is copied to `.sources/` in it, where `kongps rebuild` finds
it.
"""


def render() -> str:
    """The page's text."""
    rows = []
    for name, kind in sorted(vars(errors).items()):
        if isinstance(kind, type) and issubclass(kind, errors.CompatError) and kind.must_match:
            said = (kind.__doc__ or "").strip().partition("\n")[0].replace("``", "`")
            rows.append(f"| `{name}` | {said} | {kind.must_match} | {kind.fixed_by} |")
    return HEAD.format(api=PLUGIN_API) + "\n".join(rows) + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(render())
