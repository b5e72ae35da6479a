"""The ways a plugin can be written, and how each becomes a :class:`Plugin`.

**A structure.** A class whose annotated public fields are the configuration and whose methods are
the handlers: a dataclass, a ``msgspec.Struct``, or a plain class. It is found as

1. what the module's ``New()`` returns, as in Go; ``New()`` also sets defaults;
2. the module's class ``Plugin``, else its class ``Config``, if that has handlers;
3. the only class of the module that has handlers.

**kong-python-pdk's layout.** A class ``Plugin`` that is made with the configuration: its own
``__init__`` needs one argument beside ``self``, or takes one and the class has no annotated public
fields; it is neither a dataclass nor a Struct, and the module has no ``New``. It gets the
configuration as Kong sent it, and the looser PDK.

In both, a handler is a method ``certificate``, ``rewrite``, ``access``, ``response``, ``preread``
or ``log``, or in the first also with a capital letter, that takes the PDK. The version and the
priority are attributes ``version``/``Version`` and ``priority``/``Priority`` of the module or the
class. ``Schema``/``schema`` replaces the derived schema: a list of the fields of ``config``, or a
whole schema. ``plugin_fields`` and ``entity_checks`` add to the derived one.
``pipelining = False`` makes every PDK call wait for its answer, ``on_error = "open"`` lets requests
through whose handler failed, ``blocking`` decides whether handlers run in threads. In the first
layout handlers may be ``async def``. ``start()`` and ``close()`` of the object are called once,
before the first event and when the instance is closed.
"""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Callable, Iterable
from typing import Any, Optional

from kongps.errors import SchemaError
from kongps.phases import PHASE_NAMES
from kongps.plugins import attributes
from kongps.plugins.attributes import Source, attribute, shown
from kongps.plugins.config import Record, read_structure
from kongps.plugins.config.structures import has_fields, is_dataclass, is_struct
from kongps.plugins.handlers import EXPECTED, checked_handlers, coroutines_of, handler_names
from kongps.plugins.plugin import Placed, Plugin
from kongps.plugins.schema import assemble, own_schema

__all__ = ["find", "native_plugin"]

# What handlers get: the typed PDK, or any name after ``kong.``, with exceptions or, as in
# kong-python-pdk, with ``(value, err)``. Native plugins name PDK functions themselves.
TYPED = "kongps.pdk:Kong"
PLAIN = "kongps.kong_pdk.pdk:PlainKong"
LUA_STYLE = "kongps.kong_pdk.pdk:LuaStyleKong"
NATIVE = "kongps.core.dispatch.namespace:Namespace"


def find(source: Source, cls: Optional[type] = None, *, lua_style: bool = True) -> Plugin:
    """Finds the plugin in a module, or makes one of a class.

    :param cls: the class, when it is not to be looked for.
    :param lua_style: for kong-python-pdk's layout: PDK calls return ``(value, err)``.
    :raises PluginError: when there is no plugin, or more than one, or a broken one.
    """
    new = None if cls is not None else getattr(source.module, "New", None)
    if new is not None:
        if not callable(new):
            raise source.error(
                f"New is {shown(new)}; it must be a function that returns the plugin"
            )
        return _structure_plugin(source, new=new)
    chosen = cls if cls is not None else _chosen_class(source)
    if _is_made_with_config(chosen):
        return _config_plugin(source, chosen, lua_style=lua_style)
    return _structure_plugin(source, cls=chosen)


# Which class


def _chosen_class(source: Source) -> type:
    module = source.module
    plugin = getattr(module, "Plugin", None)
    if isinstance(plugin, type):
        return plugin
    config = getattr(module, "Config", None)
    if isinstance(config, type) and handler_names(config):
        return config
    classes = _classes_with_handlers(module)
    if len(classes) > 1:
        names = ", ".join(sorted(each.__name__ for each in classes))
        raise source.error(
            f"{names} have handlers; which one is the plugin? Call it Plugin, or define New()"
        )
    if classes:
        return classes[0]
    for name in ("Plugin", "Config"):
        if getattr(module, name, None) is not None and not isinstance(getattr(module, name), type):
            raise source.error(f"{name} is {shown(getattr(module, name))}, not a class; {EXPECTED}")
    hint = ""
    functions = (getattr(module, phase, None) for phase in PHASE_NAMES)
    if any(isinstance(each, types.FunctionType) for each in functions):
        hint = ". Its handlers are functions: make them methods of a class Plugin"
    raise source.error(f"there is no plugin in it: {EXPECTED}{hint}")


def _classes_with_handlers(module: Any) -> list[type]:
    home = module.__name__
    classes = {
        each
        for name, each in vars(module).items()
        if isinstance(each, type)
        and not name.startswith("_")
        and (each.__module__ == home or each.__module__.startswith(f"{home}."))
        and handler_names(each)
    }
    # A base class of a plugin is no second plugin.
    return [
        each
        for each in classes
        if not any(other is not each and issubclass(other, each) for other in classes)
    ]


def _is_made_with_config(cls: Any) -> bool:
    """Whether a class is of kong-python-pdk's layout."""
    if is_dataclass(cls) or is_struct(cls):
        return False
    if cls.__init__ is object.__init__ or hasattr(cls, "__attrs_attrs__"):
        return False
    try:
        parameters = inspect.signature(cls.__init__).parameters.values()
    except (TypeError, ValueError):
        return not has_fields(cls)
    by_position = [
        each
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    needed = [each for each in by_position if each.default is each.empty]
    if len(needed) > 1:  # self and more
        return len(needed) == 2
    # Of a compiled class it may only be known that it takes any arguments.
    further = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    return not has_fields(cls) and len(by_position) + further > 1


def _config_plugin(source: Source, cls: type, *, lua_style: bool) -> Plugin:
    handlers = checked_handlers(source, cls, capitals=False)

    def make(config: dict[str, Any]) -> Any:
        # The server keeps the configuration: what the plugin does to its own stays with it.
        return cls(copy.deepcopy(config))

    written = attribute(source, cls, ("Schema", "schema"))
    return _plugin(
        source,
        cls,
        (),
        schema=_own_schema(source, () if written is None else written),
        make=make,
        handlers=handlers,
        coroutines=frozenset(),
        pdk=LUA_STYLE if lua_style else PLAIN,
    )


def _structure_plugin(
    source: Source, *, cls: Any = None, new: Optional[Callable[[], Any]] = None
) -> Plugin:
    sample = None
    if new is not None:
        sample = source.call(new, "New()")
        cls = type(sample)
        if cls.__module__ == "builtins":
            raise source.error(f"New() returns {shown(sample)}; it must return the plugin's object")
    handlers = checked_handlers(source, cls)
    record: Record = source.call(lambda: read_structure(cls), f"reading {cls.__name__}")
    schema = source.call(lambda: _schema(source, cls, record, sample), "deriving the schema")
    names = [each.attribute for each in record.fields]
    if not names and sample is not None:
        _check_annotated(source, sample)

    def make(config: dict[str, Any]) -> Any:
        if new is not None:
            return record.fill(new(), config, "config")
        return record.decode(config, "config")

    return _plugin(
        source,
        cls,
        names,
        schema=schema,
        make=make,
        handlers=handlers,
        coroutines=coroutines_of(cls, handlers),
        pdk=TYPED,
    )


def native_plugin(source: Source) -> Plugin:
    """The plugin of a native library, whose file has been checked.

    :raises PluginError: when it cannot be opened or its table is not a plugin's.
    """
    from kongps.compiled.native import NativeLibrary

    library = NativeLibrary(source.name, source.path)
    return Plugin(
        source.name,
        version=library.version or attributes.DEFAULT_VERSION,
        priority=library.priority,
        schema=_own_schema(source, library.schema),
        make=library.new_instance,
        handlers={phase: phase for phase in library.phases},
        pdk=NATIVE,
        place=lambda: Placed("inline", "it is a native plugin"),
        path=source.path,
        modified=source.modified,
    )


def _plugin(
    source: Source,
    cls: Any,
    fields: Iterable[str],
    *,
    schema: dict[str, Any],
    make: Callable[[dict[str, Any]], Any],
    handlers: dict[str, str],
    coroutines: frozenset[str],
    pdk: str,
) -> Plugin:
    """The plugin, with what the attributes of its class or module say."""

    def written(*names: str) -> Any:
        return attribute(source, cls, names, fields)

    blocking = attributes.read_flag(source, "blocking", written("blocking"))
    pipelined = attributes.read_flag(source, "pipelining", written("pipelining"))

    def placed() -> Placed:
        from kongps.plugins.runs_in import place

        return place(
            source.path,
            source.module,
            phases=handlers,
            coroutines=coroutines,
            blocking=blocking,
            made_for_threads=pdk != TYPED,
        )

    return Plugin(
        source.name,
        version=attributes.read_version(source, written("version", "Version"), strict=pdk == TYPED),
        priority=attributes.read_priority(source, written("priority", "Priority")),
        schema=schema,
        make=make,
        handlers=handlers,
        pdk=pdk,
        place=placed,
        pipelined=pipelined is not False,
        on_error=attributes.read_on_error(source, written("on_error")),
        blocking=blocking,
        coroutines=coroutines,
        path=source.path,
        modified=source.modified,
    )


def _check_annotated(source: Source, sample: Any) -> None:
    """What New() sets on an object without annotations would silently be no configuration."""
    unannotated = [name for name in getattr(sample, "__dict__", ()) if not name.startswith("_")]
    if unannotated:
        raise source.error(
            f"{type(sample).__name__} has no annotated fields, so {', '.join(unannotated)} would "
            f"be no configuration; write `{unannotated[0]}: str` and the like in the class, or "
            "begin the names with an underscore"
        )


def _schema(source: Source, cls: Any, record: Record, sample: Any) -> dict[str, Any]:
    names = [each.attribute for each in record.fields]
    written = attribute(source, cls, ("Schema", "schema"), names)
    plugin_fields = attribute(source, cls, ("plugin_fields",), names)
    entity_checks = attribute(source, cls, ("entity_checks",), names)
    if written is None:
        config = record.schema("config", sample)
    elif plugin_fields is None and entity_checks is None:
        return own_schema(source.name, written)
    elif isinstance(written, dict):
        raise SchemaError("Schema is a whole schema; put plugin_fields and entity_checks in it")
    else:
        config = own_schema(source.name, written)["fields"][-1]["config"]
    return assemble(source.name, config, plugin_fields or (), entity_checks)


def _own_schema(source: Source, written: Any) -> dict[str, Any]:
    schema: dict[str, Any] = source.call(lambda: own_schema(source.name, written), "the schema")
    return schema
