"""Writes src/kongps/pdk/aio.pyi: the types of the PDK of async handlers, from the classes of the
PDK itself. A test compares the two.

    python tools/async_pdk.py
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PDK = Path(__file__).resolve().parent.parent / "src" / "kongps" / "pdk"
PAGE = PDK / "aio.pyi"
HEAD = "# Written by tools/async_pdk.py from the classes of kongps.pdk: `make docs`.\n"


def stub() -> str:
    """The text of the stub file, before it is formatted."""
    classes: dict[str, ast.ClassDef] = {}
    imports: dict[str, str] = {}
    for path in sorted(PDK.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module:
                imports.update((alias.name, node.module) for alias in node.names)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                imports.setdefault(node.targets[0].id, _module(path))
    order = _namespaces(classes, "Kong")
    body = [_async_class(classes[name]) for name in order]
    used = {
        node.id for each in body for node in ast.walk(each) if isinstance(node, ast.Name)
    } & imports.keys()
    by_module: dict[str, list[str]] = {}
    for name in sorted(used):
        by_module.setdefault(imports[name], []).append(name)
    lines = [f"from {module} import {', '.join(names)}" for module, names in by_module.items()]
    last = "def async_class(kind: type[Namespace]) -> type[Namespace]: ..."
    return "\n".join([HEAD, *lines, "", *(ast.unparse(each) for each in body), last, ""])


def _module(path: Path) -> str:
    parts = path.relative_to(PDK.parent.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _namespaces(classes: dict[str, ast.ClassDef], name: str) -> list[str]:
    """The classes of namespaces below one, and it, those first that others name."""
    found: list[str] = []
    for node in classes[name].body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            call = node.value
            if isinstance(call.func, ast.Name) and call.func.id == "namespace":
                assert isinstance(call.args[0], ast.Name)
                found += _namespaces(classes, call.args[0].id)
    return [*dict.fromkeys(found), name]


def _async_class(node: ast.ClassDef) -> ast.ClassDef:
    body: list[ast.stmt] = []
    for each in node.body:
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.Call):
            kind = each.value.args[0]
            assert isinstance(kind, ast.Name)
            body.append(ast.Assign(each.targets, _call(f"Async{kind.id}"), lineno=0))
        elif isinstance(each, ast.FunctionDef) and (
            not each.name.startswith("_") or each.name == "__call__"
        ):
            stub = ast.AsyncFunctionDef(
                each.name, each.args, [ast.Expr(ast.Constant(...))],
                [d for d in each.decorator_list if isinstance(d, ast.Name) and d.id == "overload"],
                each.returns, lineno=0,
            )  # fmt: skip
            stub.type_params = []  # type: ignore[attr-defined]  # from 3.12 on
            body.append(stub)
    made = ast.ClassDef(f"Async{node.name}", [ast.Name("Namespace")], [], body or [ast.Pass()], [])
    made.type_params = []  # type: ignore[attr-defined]
    return made


def _call(name: str) -> ast.Call:
    return ast.Call(ast.Name("namespace"), [ast.Name(name)], [])


def formatted(text: str) -> str:
    """The text as ruff sorts and formats it."""
    for words in (["check", "--quiet", "--select", "I", "--fix"], ["format"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--stdin-filename", str(PAGE), "-"],
            input=text, text=True, check=True, capture_output=True,
        ).stdout  # fmt: skip
    return text


if __name__ == "__main__":
    PAGE.write_text(formatted(stub()))
