"""Builds the compiled core, and puts the packages together.

The package ``kongps.core`` lies whole in ``src/pyx/kongps/core``; each ``.pyx`` there is an
extension module. (``src/kongps/core`` is a link to it, for tools that read the sources: mypy and
editors.) The C headers in ``include/`` and the examples travel inside the package. Everything else
about the build is in ``pyproject.toml``.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
from pathlib import Path
from types import ModuleType

import Cython
import greenlet
from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

PYX = Path("src", "pyx")
CORE = "kongps.core"

COMPILE_ARGS = ["-O3", "-fvisibility=hidden"]

# Cython's directives for the whole core. Bounds, overflow and None checks stay at Cython's safe
# defaults; C pointers, where Cython checks nothing, are used behind checks of our own.
DIRECTIVES = {
    "language_level": 3,
    "binding": False,
    "embedsignature": False,
}


def module(name: str) -> ModuleType:
    """A module of kongps that needs nothing else of it: the package has no core yet."""
    path = Path("src", "kongps", *name.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def records() -> Path:
    """A C file that says in each module of the core what it was built with and for."""
    interpreter = module("compiled.interpreter")
    facts = interpreter.facts()
    compiler = subprocess.run(
        [*facts["compiler"], "--version"], capture_output=True, text=True, check=False
    ).stdout.partition("\n")[0]
    record = {key: facts[key] for key in interpreter.BUILT_FOR}
    record.update(
        kind="core",
        kongps=module("_version").__version__,
        plugin_api=module("_version").PLUGIN_API,
        cython=Cython.__version__,
        compiler=compiler,
        flags=shlex.join(
            [*facts["compile_flags"], *shlex.split(os.environ.get("CFLAGS", "")), *COMPILE_ARGS]
        ),
    )
    header = Path("build", "record", "kongps_record.h")
    header.parent.mkdir(parents=True, exist_ok=True)
    text = module("compiled.record").c_source(record)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)
    return header


def extensions() -> list[Extension]:
    """One extension module per ``.pyx`` file, named for its place below ``src/pyx``."""
    record = records()
    return [
        Extension(
            ".".join(source.relative_to(PYX).with_suffix("").parts),
            [str(source)],
            include_dirs=["include", str(Path(greenlet.__file__).parent)],
            extra_compile_args=[*COMPILE_ARGS, "-include", str(record)],
        )
        for source in sorted(PYX.glob("kongps/core/**/*.pyx"))
    ]


setup(
    packages=[
        *find_packages("src", include=["kongps", "kongps.*"], exclude=[f"{CORE}*"]),
        CORE,
        *(f"{CORE}.{name}" for name in find_packages(str(PYX / "kongps" / "core"))),
        "kongps.examples",
        "kongps.include.kongps",
    ],
    package_dir={
        "": "src",
        CORE: str(PYX / "kongps" / "core"),
        "kongps.examples": "examples",
        "kongps.include.kongps": "include/kongps",
    },
    package_data={
        "kongps": ["py.typed"],
        CORE: ["*.pyi", "*/*.pyi"],
        "kongps.examples": ["native/*"],
        "kongps.include.kongps": ["*.h"],
    },
    ext_modules=cythonize(
        extensions(),
        include_path=[str(PYX)],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
        nthreads=os.cpu_count() or 1,
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
