"""Builds the compiled core: ``src/pyx/kongps/core/*.pyx`` as extension modules of ``kongps.core``.

Everything else about the package stands in ``pyproject.toml``.
"""

from __future__ import annotations

import os
from pathlib import Path

import greenlet
from Cython.Build import cythonize
from setuptools import Extension, setup

PYX = Path("src", "pyx")

# One process serves all requests: speed is worth more than a smaller object file. Strict aliasing
# is left on; Cython's casts go through PyObject*.
COMPILE_ARGS = ["-O3", "-fno-plt", "-fvisibility=hidden"]

# Values of Cython's directives for the whole core. Bounds, overflow and None checks stay at
# Cython's safe defaults here; the modules whose bounds are checked by hand switch them off
# themselves, beside the code that does the checking.
DIRECTIVES = {
    "language_level": 3,
    "binding": False,
    "embedsignature": False,
    "always_allow_keywords": True,
}


def extensions() -> list[Extension]:
    """One extension module per ``.pyx`` file, named for its place below ``src/pyx``."""
    found = []
    for source in sorted(PYX.glob("kongps/core/*.pyx")):
        module = ".".join(source.relative_to(PYX).with_suffix("").parts)
        found.append(
            Extension(
                module,
                [str(source)],
                include_dirs=[str(Path(greenlet.__file__).parent)],
                extra_compile_args=COMPILE_ARGS,
            )
        )
    return found


setup(
    ext_modules=cythonize(
        extensions(),
        include_path=[str(PYX)],
        build_dir="build/cython",
        compiler_directives=DIRECTIVES,
        nthreads=os.cpu_count() or 1,
    ),
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
)
