"""Builds the compiled core, and puts the packages together.

The core is ``src/pyx/kongps/core/*.pyx``, each an extension module of ``kongps.core``. The C
headers in ``include/`` and the examples travel inside the package. Everything else about it
stands in ``pyproject.toml``.
"""

from __future__ import annotations

import os
from pathlib import Path

import greenlet
from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

PYX = Path("src", "pyx")

COMPILE_ARGS = ["-O3", "-fvisibility=hidden"]

# Cython's directives for the whole core. Bounds, overflow and None checks stay at Cython's safe
# defaults; C pointers, where Cython checks nothing, are used behind checks made by hand.
DIRECTIVES = {
    "language_level": 3,
    "binding": False,
    "embedsignature": False,
}


def extensions() -> list[Extension]:
    """One extension module per ``.pyx`` file, named for its place below ``src/pyx``."""
    return [
        Extension(
            ".".join(source.relative_to(PYX).with_suffix("").parts),
            [str(source)],
            include_dirs=["include", str(Path(greenlet.__file__).parent)],
            extra_compile_args=COMPILE_ARGS,
        )
        for source in sorted(PYX.glob("kongps/core/*.pyx"))
    ]


setup(
    packages=[
        *find_packages("src", include=["kongps*"]),
        "kongps.examples",
        "kongps.include.kongps",
    ],
    package_dir={
        "": "src",
        "kongps.examples": "examples",
        "kongps.include.kongps": "include/kongps",
    },
    package_data={
        "kongps": ["py.typed"],
        "kongps.core": ["*.pyi"],
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
