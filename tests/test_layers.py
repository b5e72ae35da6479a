"""A lower layer never imports a higher one, and no modules import each other in a circle.

The layers are folders and single modules, of the compiled core and of the Python around it in one
order, since each uses the other: the PDK stands on the core, the server on both. Imports within
functions count, and so do ``cimport`` and the ``.pyi`` files; what is imported for type checkers
alone does not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import SRC

# Lowest first; each may import those before it.
LAYERS = [
    "kongps._version",
    "kongps.errors",
    "kongps.phases",
    "kongps.fields",
    "kongps.plugin_names",
    "kongps.settings",
    "kongps.core",
    "kongps.core.report",
    "kongps.core.io",
    "kongps.core.wire",
    "kongps.core.dispatch",
    "kongps.core.runners",
    "kongps.core.session",
    "kongps.core.connection",
    "kongps.core.workers",
    "kongps.log",
    "kongps.stdio",
    "kongps.pdk",
    "kongps.compiled",
    "kongps.kong_pdk",
    "kongps.plugins",
    "kongps.server",
    "kongps.workers",
    "kongps.testing",
    "kongps.bridge",
    "kongps.dev",
    "kongps.cli",
    "kongps.__main__",
    "kongps",  # what `import kongps` offers, imported when it is asked for
]

_ROOTS = (SRC, SRC / "pyx")

# `from a.b cimport c, d as e`, `from a.b import (`, `import a.b`, `cimport a.b as c`
_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<base>[\w.]+)\s+c?import\s+(?P<names>\([^)]*\)|[^\n#]*)"
    r"|c?import\s+(?P<modules>[\w., ]+))",
    re.M,
)


def _files() -> Iterator[tuple[str, Path]]:
    """Every source file of kongps, with the name of its module."""
    for root in _ROOTS:
        for path in sorted((root / "kongps").rglob("*.py*")):
            if path.suffix in (".py", ".pyi", ".pyx", ".pxd") and SRC / "kongps/core" not in (
                path.parents
            ):
                name = ".".join(path.relative_to(root).with_suffix("").parts)
                yield name.removesuffix(".__init__"), path


def _python_imports(node: ast.AST) -> Iterator[str]:
    """The dotted names that Python source imports, those of objects in modules too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for each in child.orelse:
                yield from _python_imports(ast.Module([each], []))
        elif isinstance(child, ast.Import):
            yield from (each.name for each in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert not child.level, "imports in kongps are absolute"
            yield from (f"{child.module}.{each.name}" for each in child.names)
        else:
            yield from _python_imports(child)


def _cython_imports(text: str) -> Iterator[str]:
    for found in _IMPORT.finditer(text):
        names = found["modules"] or found["names"].strip("()")
        base = f"{found['base']}." if found["base"] else ""
        for each in names.split(","):
            if each.strip():
                yield base + each.split()[0]


def _imports() -> dict[str, set[str]]:
    """The modules of kongps that each module of kongps imports."""
    files = list(_files())
    modules = {name for name, _ in files}
    imports: dict[str, set[str]] = {name: set() for name in modules}
    for name, path in files:
        text = path.read_text()
        python = path.suffix in (".py", ".pyi")
        for used in _python_imports(ast.parse(text)) if python else _cython_imports(text):
            while used and used not in modules:
                used = used.rpartition(".")[0]
            if used and used != name:
                imports[name].add(used)
    return imports


def _layer(module: str) -> int:
    found = [each for each in LAYERS if module == each or module.startswith(f"{each}.")]
    assert found, f"{module} is in no layer"
    return LAYERS.index(max(found, key=len))


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return _imports()


def test_every_module_has_a_layer_and_every_layer_modules(imports: dict[str, set[str]]) -> None:
    assert not [name for name in imports if name != "kongps" and LAYERS[_layer(name)] == "kongps"]
    there = {LAYERS[_layer(name)] for name in imports}
    to_come_and_to_go = {"kongps.bridge", "kongps.dev"}
    assert set(LAYERS) - there <= to_come_and_to_go


def test_imports_point_downwards(imports: dict[str, set[str]]) -> None:
    upwards = {
        (name, used)
        for name, all_used in imports.items()
        for used in all_used
        if _layer(used) > _layer(name)
    }
    assert sorted(upwards) == []


def test_no_modules_import_each_other_in_a_circle(imports: dict[str, set[str]]) -> None:
    left = dict(imports)
    while True:
        ends = {name for name, used in left.items() if not used & left.keys()}
        if not ends:
            break
        for name in ends:
            del left[name]
    # What is left is in a circle or leads to one; from the other end, only what is in one stays.
    while True:
        unused = left.keys() - {each for used in left.values() for each in used}
        if not unused:
            break
        for name in unused:
            del left[name]
    assert {name: sorted(used & left.keys()) for name, used in sorted(left.items())} == {}


def test_what_counts_as_an_import() -> None:
    python = """
import a.b as x
if TYPE_CHECKING:
    from never import this
def function():
    from c import d
"""
    assert set(_python_imports(ast.parse(python))) == {"a.b", "c.d"}
    cython = """
from a.b cimport c, d as e
    from f import g  # a comment
cimport h.i as j
from k cimport (
    l, m,
)
from "file.h":
"""
    assert set(_cython_imports(cython)) == {"a.b.c", "a.b.d", "f.g", "h.i", "k.l", "k.m"}
