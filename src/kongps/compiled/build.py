"""``kongps build``: from a plugin's source to a compiled plugin.

A ``.py`` or ``.pyx`` file, or a package directory, is translated to C by Cython and compiled with
the flags of the interpreter that is to load it; a ``.c``, ``.cpp`` or ``.rs`` file is compiled with
the system's compiler. Each result holds a record of what it was built with and for.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from kongps._version import PLUGIN_API, __version__
from kongps.compiled import interpreter
from kongps.compiled.checks import running
from kongps.compiled.interpreter import BUILT_FOR, facts, readable
from kongps.compiled.load import compiled_name
from kongps.compiled.record import c_source, source_hash
from kongps.compiled.sources import SOURCES, read_record
from kongps.errors import BuildError
from kongps.plugin_names import check_name

__all__ = ["Progress", "build", "cython_version", "get_include"]

PYTHON_SUFFIXES = (".pyx", ".py")
C_SUFFIXES = (".c",)
CXX_SUFFIXES = (".cpp", ".cc", ".cxx")
RUST_SUFFIXES = (".rs",)

# What native plugins are compiled with; CFLAGS, CXXFLAGS, LDFLAGS and RUSTFLAGS are added.
NATIVE_FLAGS = ("-O2", "-fPIC", "-Wall", "-Wextra")

# `import cython` or a `# cython:` line: the author means annotations as C types.
_PURE_MODE = re.compile(
    rb"^\s*(import cython\b|from cython\b|c?import cython\b|#\s*cython\s*:)", re.M
)

Progress = Callable[[str], None]


def build(
    source: str,
    *,
    output: Optional[str] = None,
    annotate: bool = False,
    python: Optional[str] = None,
    progress: Progress = print,
) -> list[str]:
    """Compiles a plugin.

    :param source: a ``.py``, ``.pyx``, ``.c``, ``.cpp`` or ``.rs`` file, or a package directory.
    :param output: the plugins directory to put the result in; by default the source's own.
    :param annotate: also write Cython's report, HTML, beside the result.
    :param python: the interpreter to compile for; this one by default. It needs no kongps.
    :param progress: gets a line for each step.
    :returns: the files made.
    :raises BuildError: when it cannot be compiled; the compiler's messages are on stderr.
    """
    source = os.path.abspath(source.rstrip("/") or source)
    if not os.path.exists(source):
        raise BuildError(f"there is no {source}")
    package = os.path.isdir(source)
    name, suffix = os.path.basename(source), ""
    if not package:
        name, suffix = os.path.splitext(name)
    check_name(name)
    directory = os.path.abspath(output or os.path.dirname(source))
    os.makedirs(directory, exist_ok=True)
    job = _Job(name, source, directory, progress)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kongps-build-") as work:
        if package or suffix in PYTHON_SUFFIXES:
            made = _build_python(job, work, annotate=annotate, python=python)
        elif suffix in (*C_SUFFIXES, *CXX_SUFFIXES, *RUST_SUFFIXES):
            made = [_build_native(job, work, suffix)]
        else:
            raise BuildError(
                f"{source}: kongps builds .py, .pyx, .c, .cpp and .rs files and package directories"
            )
    progress(f"{name}: built {', '.join(made)} in {time.monotonic() - begun:.1f} s")
    return made


@dataclass
class _Job:
    name: str
    source: str
    directory: str
    progress: Progress

    def keep_source(self) -> str:
        """Copies the source to where `kongps rebuild` finds it, unless it is there.

        :returns: its place from the plugins directory.
        """
        if os.path.samefile(os.path.dirname(self.source), self.directory):
            return os.path.basename(self.source)
        kept = os.path.join(self.directory, SOURCES, os.path.basename(self.source))
        if not (os.path.exists(kept) and os.path.samefile(kept, self.source)):
            os.makedirs(os.path.dirname(kept), exist_ok=True)
            if os.path.isdir(self.source):
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(self.source, kept, ignore=_NOT_SOURCES)
            else:
                shutil.copyfile(self.source, kept)
        return os.path.relpath(kept, self.directory)

    def record(self, **facts: Any) -> dict[str, Any]:
        return {
            "plugin": self.name,
            "kongps": __version__,
            "plugin_api": PLUGIN_API,
            "source": self.keep_source(),
            "source_hash": source_hash(self.source),
            "package": os.path.isdir(self.source),
            **facts,
        }


_NOT_SOURCES = shutil.ignore_patterns("*.so", "__pycache__", ".*", "*.html")


def _run(command: Sequence[str], what: str, cwd: Optional[str] = None) -> None:
    """Runs a compiler; its output is shown when it fails.

    :raises BuildError: when it fails or is not there.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise BuildError(
            f"{what}: there is no {command[0]} on this machine; install a compiler "
            "(Debian and Ubuntu: apt-get install build-essential)"
        ) from None
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        raise BuildError(f"{what} failed: {shlex.join(command[:1])} ended with {done.returncode}")


def _put(made: str, place: str) -> None:
    """Replaces a file in one step: a server that has loaded the old one keeps it."""
    os.makedirs(os.path.dirname(place), exist_ok=True)
    fresh = f"{place}.{os.getpid()}.new"
    shutil.copyfile(made, fresh)
    os.chmod(fresh, 0o755)
    os.replace(fresh, place)


def _compiler_version(command: Sequence[str]) -> str:
    with contextlib.suppress(OSError, IndexError):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True)
        return done.stdout.splitlines()[0]
    return ""


# Python and Cython


def cython_version() -> Optional[str]:
    """The version of Cython that `kongps build` would use; None without one."""
    if importlib.util.find_spec("Cython") is None:
        return None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("cython")
    return "unknown"


def _target(python: Optional[str]) -> dict[str, Any]:
    if python is None:
        return {**facts(), "libc": running()["libc"]}
    script = interpreter.__file__
    try:
        printed = subprocess.run(
            [python, "-I", script], capture_output=True, text=True, check=True
        ).stdout
        found: dict[str, Any] = json.loads(printed)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise BuildError(
            f"{python} is not a Python that plugins can be compiled for: {detail.strip()}"
        ) from None
    return found


def _modules(job: _Job) -> dict[str, str]:
    """The sources to compile, and the modules' names below the plugins directory."""
    if not os.path.isdir(job.source):
        return {job.source: job.name}
    modules: dict[str, str] = {}
    for directory, directories, files in os.walk(job.source):
        directories[:] = sorted(
            each for each in directories if each != "__pycache__" and not each.startswith(".")
        )
        for entry in sorted(files):
            stem, suffix = os.path.splitext(entry)
            if suffix not in PYTHON_SUFFIXES:
                continue
            path = os.path.join(directory, entry)
            within = os.path.relpath(os.path.join(directory, stem), job.source).split(os.sep)
            name = ".".join([job.name, *within])
            if name in modules.values():
                raise BuildError(f"{path[: -len(suffix)]}: there is a .py and a .pyx; keep one")
            modules[path] = name
    if f"{job.name}.__init__" not in modules.values():
        raise BuildError(f"{job.source} has no __init__.py")
    return modules


def _build_python(job: _Job, work: str, *, annotate: bool, python: Optional[str]) -> list[str]:
    version = cython_version()
    if version is None:
        raise BuildError(
            "Cython is needed to build Python plugins and is not installed; install it with: "
            f"{shlex.quote(sys.executable)} -m pip install 'kongps[build]'"
        )
    if int(re.match(r"\d*", version)[0] or 3) < 3:  # type: ignore[index]
        raise BuildError(
            f"Cython {version} is too old to build plugins; install 3.1 or newer with: "
            f"{shlex.quote(sys.executable)} -m pip install --upgrade 'kongps[build]'"
        )
    target = _target(python)
    if not any(os.path.exists(os.path.join(each, "Python.h")) for each in target["include"]):
        raise BuildError(
            f"the headers of {readable(target)} are missing: there is no Python.h in "
            f"{' or '.join(target['include'])}; install them (Debian and Ubuntu: "
            "apt-get install python3-dev)"
        )
    record = job.record(
        kind="python",
        cython=version,
        compiler=_compiler_version(target["compiler"]),
        **{key: target[key] for key in BUILT_FOR},
    )
    made = []
    for number, (path, name) in enumerate(_modules(job).items()):
        job.progress(
            f"{job.name}: compiling {os.path.relpath(path, os.path.dirname(job.source))} for "
            f"{readable(target)} with Cython {version}"
        )
        place = os.path.join(job.directory, *name.split(".")) + target["suffix"]
        scratch = os.path.join(work, str(number))
        c_file = _translate(job, path, name, scratch, annotate=annotate)
        if annotate:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            report = os.path.join(scratch, "module.html")
            shutil.copyfile(report, re.sub(r"\.so$", ".html", place))
        _put(_compile(path, name, c_file, target, record), place)
        made.append(place)
    if os.path.isdir(job.source):
        _clear_away(os.path.join(job.directory, job.name), target["suffix"], made)
        _copy_data(job)
    return made


def _translate(job: _Job, path: str, name: str, work: str, *, annotate: bool) -> str:
    """Translates a module to C.

    :returns: the C file, in the new directory `work`; with `annotate`, the report lies beside it.
    """
    os.makedirs(work)
    c_file = os.path.join(work, "module.c")
    root = os.path.dirname(job.source)
    directives = ["-X", "language_level=3"]
    with open(path, "rb") as file:
        text = file.read()
    if path.endswith(".py") and not _PURE_MODE.search(text):
        # Annotations stay hints, as in Python: Cython must not check them.
        directives += ["-X", "annotation_typing=False"]
    command = [sys.executable, "-m", "cython", *directives, "--module-name", compiled_name(name)]
    if annotate:
        command.append("--annotate")
    _run([*command, "-o", c_file, os.path.relpath(path, root)], f"translating {path} to C", root)
    return c_file


def _compile(
    path: str, name: str, c_file: str, target: dict[str, Any], record: dict[str, Any]
) -> str:
    """Compiles the C file of a module, with its record.

    :returns: the library, beside the C file.
    """
    work = os.path.dirname(c_file)
    record_file = os.path.join(work, "record.c")
    with open(record_file, "w") as file:
        file.write(c_source(record, also=_renamed_init(name, compiled_name(name))))
    result = os.path.join(work, "module.so")
    include = [*target["include"], os.path.dirname(path)]
    compiler = [*target["compiler"], *target["compile_flags"], *_flags("CFLAGS"), "-g0", "-w"]
    linker = [*target["link"], *_flags("LDFLAGS")]
    files = [c_file, record_file, "-o", result]
    _run([*compiler, *(f"-I{each}" for each in include), *files, *linker], f"compiling {path}")
    return result


def _renamed_init(name: str, built_in: str) -> str:
    """C text that exports the function that Python looks for, if Cython's is called otherwise."""
    parts = [part for part in name.split(".") if part != "__init__"]
    wanted = f"PyInit_{parts[-1].replace('-', '_')}"
    there = f"PyInit_{[part for part in built_in.split('.') if part != '__init__'][-1]}"
    if wanted == there:
        return ""
    return (
        f'void *{there}(void);\n__attribute__((visibility("default"))) void *{wanted}(void)'
        f"\n{{\n    return {there}();\n}}\n"
    )


def _clear_away(directory: str, suffix: str, made: list[str]) -> None:
    """Removes what was compiled from modules of the package that are gone."""
    for parent, _, entries in os.walk(directory):
        for entry in entries:
            path = os.path.join(parent, entry)
            if entry.endswith(suffix) and path not in made and read_record(path):
                os.unlink(path)


def _copy_data(job: _Job) -> None:
    """Copies what else the package holds: data files that its modules read."""
    place = os.path.join(job.directory, job.name)
    if os.path.exists(place) and os.path.samefile(place, job.source):
        return
    ignore = shutil.ignore_patterns("*.so", "__pycache__", ".*", "*.py", "*.pyx", "*.pxd")
    shutil.copytree(job.source, place, dirs_exist_ok=True, ignore=ignore)


# Native plugins


def get_include() -> str:
    """The directory of the C headers, for the compiler's ``-I``.

    :returns: its path; ``#include <kongps/phases.h>`` is found below it.
    """
    package = os.path.dirname(os.path.dirname(__file__))
    installed = os.path.join(package, "include")
    return installed if os.path.isdir(installed) else os.path.join(package, "..", "..", "include")


def _flags(variable: str, default: str = "") -> list[str]:
    """The words of an environment variable such as ``CFLAGS``."""
    return shlex.split(os.environ.get(variable) or default)


def _build_native(job: _Job, work: str, suffix: str) -> str:
    c_compiler = _flags("CC", "cc")
    compiler, own_flags = c_compiler, "CFLAGS"
    if suffix in CXX_SUFFIXES:
        compiler, own_flags = _flags("CXX", "c++"), "CXXFLAGS"
    elif suffix in RUST_SUFFIXES:
        compiler, own_flags = _flags("RUSTC", "rustc"), "RUSTFLAGS"
    version = _compiler_version(compiler)
    job.progress(f"{job.name}: compiling {os.path.basename(job.source)} with {version}")
    here = running()
    record = job.record(kind="native", compiler=version, machine=here["machine"], libc=here["libc"])
    record_file = os.path.join(work, "record.c")
    with open(record_file, "w") as file:
        file.write(c_source(record))
    record_object = os.path.join(work, "record.o")
    _run([*c_compiler, "-fPIC", "-c", record_file, "-o", record_object], "compiling the record")
    result = os.path.join(work, "plugin.so")
    if suffix in RUST_SUFFIXES:
        crate = ["--crate-type", "cdylib", "--crate-name", f"plugin_{job.name.replace('-', '_')}"]
        codegen = ["-C", "panic=abort", "-C", f"link-arg={record_object}", "-C", "link-dead-code"]
        flags = ["--edition", "2021", *crate, "-O", *codegen, *_flags(own_flags)]
        command = [*compiler, *flags, job.source, "-o", result]
    else:
        flags = [*NATIVE_FLAGS, f"-I{get_include()}", *_flags(own_flags), "-shared"]
        files = ["-o", result, job.source, record_object]
        command = [*compiler, *flags, *files, *_flags("LDFLAGS")]
    _run(command, f"compiling {job.source}")
    place = os.path.join(job.directory, f"{job.name}.so")
    _put(result, place)
    return place
