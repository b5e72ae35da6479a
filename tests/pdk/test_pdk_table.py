"""The table of PDK functions against Kong's documentation, and the methods against the table."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import pytest
from paths import DATA

import kongps.pdk
from kongps.core.dispatch.namespace import Namespace
from kongps.core.wire.function import registered
from kongps.pdk import FUNCTIONS, Kong

DATA = DATA / "pdk"
DOCUMENTED: dict[str, Any] = json.loads((DATA / "lua-pdk.json").read_text("utf-8"))
ROWS = {row.name: row for row in FUNCTIONS}
PHASES = ("certificate", "rewrite", "access", "response", "preread", "log")
LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")

# What the documentation says of parameters, where the table says otherwise.
OTHER_PARAMETERS = {
    "kong.client.tls.request_client_certificate": (),  # an OpenSSL object
    "kong.client.tls.set_client_verify": ("result",),  # left out of the documentation
    "kong.log.new": ("namespace", "format"),
    "kong.log.set_format": ("format",),
    "kong.request.get_query_arg": ("name",),  # left out of the documentation
    "kong.request.get_raw_body": ("max_allowed_file_size",),  # taken by 3.9
    "kong.vault.warmup": ("input",),  # left out of the documentation
}
# Beyond the documentation: the functions that Kong has for plugin servers, and those that the
# recordings show to be there.
UNDOCUMENTED = {
    "kong.ctx.shared.get",
    "kong.ctx.shared.set",
    "kong.ctx.plugin.get",
    "kong.ctx.plugin.set",
    "kong.log.new",
    "kong.log.set_format",
    "kong.nginx.get_ctx",
    "kong.nginx.get_tls1_version_str",
    "kong.nginx.get_var",
    "kong.nginx.req_start_time",
    "kong.nginx.set_ctx",
    "kong.tracing.get_root_span",
    "kong.tracing.get_spans",
}


def documented_names(name: str) -> list[str]:
    if name == "kong.log.LEVEL":
        return [f"kong.log.{level}" for level in LEVELS]
    return [name.replace(":", ".")]


def namespaces() -> dict[str, type[Namespace]]:
    """Every namespace by its dotted name."""
    found: dict[str, type[Namespace]] = {}

    def walk(name: str, kind: type[Namespace]) -> None:
        found[name] = kind
        for attribute in vars(kind):
            child = getattr(kind, attribute)
            if isinstance(child, type) and issubclass(child, Namespace):
                walk(f"{name}.{attribute}", child)

    walk("kong", Kong)
    return found


def methods() -> dict[str, Any]:
    """Every public method by the name of the PDK function that it stands for."""
    found = {}
    for name, kind in namespaces().items():
        for attribute, value in vars(kind).items():
            if attribute == "__call__":
                found[name] = value
            elif inspect.isfunction(value):
                assert not attribute.startswith("_"), f"{name}.{attribute}"
                found[f"{name}.{attribute.rstrip('_')}"] = value
    return found


METHODS = methods()


def words(text: str | None) -> str:
    return " ".join((text or "").split())


def test_rows_are_unique_and_registered() -> None:
    assert len(ROWS) == len(FUNCTIONS)
    assert registered().keys() >= ROWS.keys()


@pytest.mark.parametrize("name", [*DOCUMENTED["functions"], *DOCUMENTED["no_longer_documented"]])
def test_every_documented_function_is_in_the_table(name: str) -> None:
    for function in documented_names(name):
        assert function in ROWS


def test_nothing_else_is_in_the_table() -> None:
    documented = {
        function
        for name in (*DOCUMENTED["functions"], *DOCUMENTED["no_longer_documented"])
        for function in documented_names(name)
    }
    assert ROWS.keys() - documented == UNDOCUMENTED


@pytest.mark.parametrize("name", DOCUMENTED["functions"])
def test_parameters_are_the_documented_ones(name: str) -> None:
    documented = tuple(param["name"] for param in DOCUMENTED["functions"][name]["params"])
    for function in documented_names(name):
        assert ROWS[function].params == OTHER_PARAMETERS.get(function, documented)


@pytest.mark.parametrize("name", DOCUMENTED["functions"])
def test_first_version_is_the_documented_one(name: str) -> None:
    for function in documented_names(name):
        if function == "kong.request.get_forwarded_port":
            assert ROWS[function].since == "2.0"  # documented under a misprinted name until 2.1
        else:
            assert ROWS[function].since == DOCUMENTED["functions"][name]["since"]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_phases(name: str) -> None:
    row = ROWS[name]
    assert set(row.phases) <= set(PHASES)
    assert list(row.phases) == [phase for phase in PHASES if phase in row.phases]
    assert bool(row.phases) != bool(row.unavailable)
    assert row.terminal == (name in ("kong.response.exit", "kong.response.error"))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_row_has_a_documented_method(name: str) -> None:
    row = ROWS[name]
    text = words(METHODS[name].__doc__)
    assert f"Phases: {', '.join(row.phases) or 'none'}." in text
    if row.since and name not in ("kong.tracing.new_span", *sorted(UNDOCUMENTED)):
        assert f"Since Kong {row.since}" in text
    if row.unavailable:
        assert text.startswith("Cannot be called")
        assert ":raises PDKError: always." in text
        assert "; " in row.unavailable or "Kong" in row.unavailable or "Lua" in row.unavailable
    else:
        for param in inspect.signature(METHODS[name]).parameters:
            if param != "self":
                assert f":param {param}:" in text


def test_every_method_has_a_row() -> None:
    assert METHODS.keys() == ROWS.keys()


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_take_what_the_table_says_and_are_annotated(name: str) -> None:
    signature = inspect.signature(METHODS[name])
    assert signature.return_annotation is not inspect.Signature.empty
    params = [param for param in signature.parameters.values() if param.name != "self"]
    for param in params:
        assert param.annotation is not inspect.Parameter.empty, param.name
    fixed = tuple(
        param.name for param in params if param.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    )
    assert fixed == ROWS[name].params


@pytest.mark.parametrize("name", sorted(namespaces()))
def test_namespaces_are_light(name: str) -> None:
    kind = namespaces()[name]
    assert vars(kind)["__slots__"] == ()
    assert not hasattr(kind, "__dict__") or "__dict__" not in dir(kind)
    assert kind.__doc__
    assert name == "kong" or f"``{name}``" in kind.__doc__


def test_reexports() -> None:
    for name in kongps.pdk.__all__:
        assert getattr(kongps.pdk, name) is not None


def test_method_bodies_name_their_own_function() -> None:
    for name, method in METHODS.items():
        called = re.findall(r'_call\(\s*"(kong\.[a-z0-9_.]+)"', inspect.getsource(method))
        if called:
            assert set(called) == {name}
