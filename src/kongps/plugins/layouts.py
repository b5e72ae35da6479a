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
``pipelining = False`` has every PDK call waited for, ``on_error = "open"`` lets requests through
whose handler failed, ``blocking = True`` has handlers run in threads and ``False`` keeps them out
of them. In the first layout handlers may be ``async def``. ``start()`` and ``close()`` of the
object are called once, before the first event and when the instance is closed.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Optional

from kongps.errors import PluginError, SchemaError, UnsupportedType
from kongps.phases import PHASE_NAMES
from kongps.plugins.config import Record, read_structure
from kongps.plugins.config.structures import has_fields, is_dataclass, is_struct
from kongps.plugins.plugin import (
    HOOKS,
    Placed,
    Plugin,
    bare_pdk,
    lua_style_pdk,
    python_style_pdk,
    typed_pdk,
)
from kongps.plugins.runs_in import place
from kongps.plugins.schema import assemble, own_schema
from kongps.settings import ON_ERROR

__all__ = ["DEFAULT_VERSION", "EXPECTED", "Source", "find", "native_plugin"]

# Kong 3 does not load a plugin without a version.
DEFAULT_VERSION = "0.0.0"

# Up to three numbers, as Kong 3 wants it; it cuts off what follows them.
_VERSION = re.compile(r"\d+(\.\d+){0,2}([-+][0-9A-Za-z.+-]+)?")

# Kong keeps a priority in a Lua number, which holds whole numbers up to this.
_PRIORITY_LIMIT = 2**53

# Of a function's code: generator, coroutine, and the like; `*args`. `inspect` has names for them.
_NOT_PLAIN = 0x20 | 0x80 | 0x100 | 0x200
_TAKES_FURTHER = 0x04

EXPECTED = (
    "expected New(), a class Plugin or Config, or one class with handlers "
    f"({', '.join(PHASE_NAMES)}, each a method that takes kong)"
)


class Source(NamedTuple):
    """Where a plugin is read from.

    :ivar name: the plugin's name.
    :ivar module: the module with its attributes, or None for a class alone.
    :ivar path: its file, or "".
    :ivar describe: tells of an exception that plugin code raised, with file and line.
    """

    name: str
    module: Optional[types.ModuleType]
    path: str
    modified: float
    describe: Callable[[BaseException], str]

    def error(self, reason: str) -> PluginError:
        """A :class:`PluginError` of this plugin, with its file."""
        return PluginError(self.name, f"{self.path}: {reason}" if self.path else reason)

    def call(self, function: Callable[[], Any], what: str) -> Any:
        """Calls plugin code while the plugin is loaded.

        :raises PluginError: when it raises anything; an UnsupportedType is passed on.
        """
        try:
            return function()
        except (PluginError, UnsupportedType):
            raise
        except BaseException as error:
            raise PluginError(self.name, f"{what} failed: {self.describe(error)}") from error


def find(source: Source, cls: Optional[type] = None, *, lua_style: bool = True) -> Plugin:
    """Finds the plugin in a module, or makes one of a class.

    :param cls: the class, when it is not to be looked for.
    :param lua_style: for kong-python-pdk's layout: PDK calls return ``(value, err)``.
    :raises PluginError: when there is no plugin, or more than one, or a broken one.
    """
    new = None if cls is not None else getattr(source.module, "New", None)
    if new is not None:
        return _structure_plugin(source, new=_checked_new(source, new))
    chosen = cls if cls is not None else _chosen_class(source)
    if _is_made_with_config(chosen):
        return _config_plugin(source, chosen, lua_style=lua_style)
    return _structure_plugin(source, cls=chosen)


# Which class


def _checked_new(source: Source, new: Any) -> Callable[[], Any]:
    if not callable(new):
        raise source.error(f"New is {_a(new)}; it must be a function that returns the plugin")
    return new  # type: ignore[no-any-return]


def _chosen_class(source: Source) -> type:
    module = source.module
    plugin = getattr(module, "Plugin", None)
    if isinstance(plugin, type):
        return plugin
    config = getattr(module, "Config", None)
    if isinstance(config, type) and _handler_names(config):
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
            raise source.error(f"{name} is {_a(getattr(module, name))}, not a class; {EXPECTED}")
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
        and _handler_names(each)
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
        takes = _plain_arguments(cls.__init__) or _arguments(cls.__init__)
    except (TypeError, ValueError):
        return not has_fields(cls)
    if takes.needed > 1:  # self and more
        return takes.needed == 2
    # A compiled class may only tell that it takes any arguments.
    return not has_fields(cls) and (takes.named > 1 or (takes.named == 1 and takes.further))


class _Arguments(NamedTuple):
    """The arguments by position that a function takes.

    :ivar needed: how many have no default.
    :ivar named: how many have a name.
    :ivar further: whether it takes any number of others.
    """

    needed: int
    named: int
    further: bool


def _plain_arguments(function: Any) -> Optional[_Arguments]:
    """The arguments of a plain function, which need no ``inspect``; None for all others.

    A plain function is written in Python, no generator and not async, has no attributes that a
    decorator gave it, and needs no arguments by name.
    """
    if type(function) is not types.FunctionType or vars(function):
        return None
    code, defaults = function.__code__, function.__defaults__ or ()
    if code.co_flags & _NOT_PLAIN or code.co_kwonlyargcount > len(function.__kwdefaults__ or ()):
        return None
    further = bool(code.co_flags & _TAKES_FURTHER)
    return _Arguments(code.co_argcount - len(defaults), code.co_argcount, further)


def _arguments(function: Any) -> _Arguments:
    """The arguments of a function.

    :raises TypeError, ValueError: when it does not tell.
    """
    import inspect

    parameters = inspect.signature(function).parameters.values()
    named = [
        each
        for each in parameters
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    needed = [each for each in named if each.default is each.empty]
    further = any(each.kind is each.VAR_POSITIONAL for each in parameters)
    return _Arguments(len(needed), len(named), further)


# Its handlers


def _handler_names(cls: Any, *, capitals: bool = True) -> dict[str, str]:
    """The names of a class's handlers, by phase; only the lower-case one when there are both."""
    names = {}
    for phase in PHASE_NAMES:
        for name in (phase.capitalize(), phase) if capitals else (phase,):
            method = getattr(cls, name, None)
            if callable(method) and not isinstance(method, type):
                names[phase] = name
    return names


def _checked_handlers(source: Source, cls: Any, *, capitals: bool = True) -> dict[str, str]:
    names = _handler_names(cls, capitals=capitals)
    if not names:
        raise source.error(f"{cls.__name__} has no handler: {EXPECTED}")
    for phase, name in names.items():
        if capitals and name == phase and callable(getattr(cls, phase.capitalize(), None)):
            raise source.error(f"{cls.__name__} has {phase} and {phase.capitalize()}; keep one")
        _check_handler(source, cls, name, coroutines=capitals)
    return names


def is_coroutine_function(function: Any) -> bool:
    """Whether a function is ``async def``, also one that Cython has compiled."""
    if _plain_arguments(function) is not None:
        return False
    import inspect

    function = inspect.unwrap(function)
    if inspect.iscoroutinefunction(function):
        return True
    return type(function).__name__ == "cython_function_or_method" and bool(
        getattr(function, "_is_coroutine", False)
    )


def _coroutines(cls: Any, handlers: dict[str, str]) -> frozenset[str]:
    """The phases whose handlers are ``async def``, and the hooks that are."""
    names = {what: [name] for what, name in handlers.items()}
    names.update((hook, [n for n in named if hasattr(cls, n)]) for hook, named in HOOKS.items())
    return frozenset(
        what
        for what, found in names.items()
        if found and is_coroutine_function(getattr(cls, found[0]))
    )


def _check_handler(source: Source, cls: Any, name: str, *, coroutines: bool) -> None:
    method = _static(cls, name)
    takes = _plain_arguments(method)
    if takes is not None and takes.needed <= 2 and (takes.named >= 2 or takes.further):
        return
    import inspect

    what = f"{cls.__name__}.{name}"
    function = inspect.unwrap(getattr(method, "__func__", method))
    if inspect.isasyncgenfunction(function):
        raise source.error(f"{what} is a generator: nothing would run it; use return, not yield")
    if not coroutines and is_coroutine_function(function):
        raise source.error(
            f"{what}: handlers of kong-python-pdk's layout cannot be async; annotate the class's "
            "fields and leave out __init__, or use def"
        )
    if inspect.isgeneratorfunction(function):
        raise source.error(f"{what} is a generator: nothing would run it; use return, not yield")
    bound = isinstance(method, (staticmethod, classmethod))
    try:
        signature = inspect.signature(getattr(cls, name))
    except (TypeError, ValueError):
        return  # compiled, and silent about its arguments
    try:
        signature.bind(*([None] if bound else [None, None]))
    except TypeError:
        raise source.error(
            f"{what}{signature} cannot be called: a handler takes kong, and nothing else"
        ) from None


# Its version, priority and schema


def _attribute(source: Source, cls: Any, names: Iterable[str], fields: Iterable[str] = ()) -> Any:
    """The attribute of the class, else of the module, with one of some names; None without.

    :param fields: names of the structure, which are no attributes of the plugin.
    """
    for holder in (cls, source.module):
        own = set(fields) if holder is cls else set()
        found = {}
        for name in names:
            value = getattr(holder, name, None)
            if value is None or name in own or _is_code(value):
                continue
            if not _is_slot(holder, name):
                found[name] = value
        values = list(found.values())
        if any(value != values[0] for value in values):
            raise source.error(f"{' and '.join(found)} differ; keep one")
        if values:
            return values[0]
    return None


def _is_code(value: Any) -> bool:
    """Whether something is a function or a module: ``from importlib.metadata import version``."""
    if isinstance(value, (str, int, float, list, tuple, dict)):
        return False
    import inspect

    return inspect.isroutine(value) or inspect.ismodule(value)


def _is_slot(holder: Any, name: str) -> bool:
    """Whether an attribute of a class stands for an attribute of its objects."""
    return isinstance(holder, type) and hasattr(_static(holder, name), "__get__")


def _static(cls: type, name: str) -> Any:
    """What a class or a base of it has for a name, as it stands there."""
    return next((vars(each)[name] for each in cls.__mro__ if name in vars(each)), None)


def _version(source: Source, value: Any, *, strict: bool) -> str:
    if value is None:
        return DEFAULT_VERSION
    if not strict and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise source.error(f'its version is {_a(value)}; it must be a string such as "1.0.0"')
    if strict and not _VERSION.fullmatch(value):
        raise source.error(f'its version is {value!r}; Kong takes up to three numbers, "1.0.0"')
    return value


def _priority(source: Source, value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise source.error(f"its priority is {_a(value)}; it must be a whole number")
    if abs(value) > _PRIORITY_LIMIT:
        raise source.error("its priority is beyond what Kong can hold, 2**53")
    return value


def _pipelined(source: Source, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return value is not False
    raise source.error(f"its attribute pipelining is {_a(value)}; it must be True or False")


def _on_error(source: Source, value: Any) -> Optional[str]:
    if value is None or value in ON_ERROR:
        return value  # type: ignore[no-any-return]
    raise source.error(
        f"its attribute on_error is {_a(value)}; it must be {' or '.join(map(repr, ON_ERROR))}"
    )


def _blocking(source: Source, value: Any) -> Optional[bool]:
    if value is None or isinstance(value, bool):
        return value
    raise source.error(f"its attribute blocking is {_a(value)}; it must be True or False")


def _a(value: object) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"an object of type {type(value).__name__}"


# The layouts


def _config_plugin(source: Source, cls: type, *, lua_style: bool) -> Plugin:
    handlers = _checked_handlers(source, cls, capitals=False)

    def make(config: dict[str, Any]) -> Any:
        import copy

        # The server keeps the configuration: what the plugin does to its own stays with it.
        return cls(copy.deepcopy(config))

    try:
        written = _attribute(source, cls, ("Schema", "schema"))
        schema = own_schema(source.name, () if written is None else written)
    except SchemaError as error:
        raise source.error(str(error)) from None
    return _plugin(
        source,
        cls,
        (),
        schema=schema,
        make=make,
        handlers=handlers,
        coroutines=frozenset(),
        pdk=lua_style_pdk if lua_style else python_style_pdk,
    )


def _structure_plugin(
    source: Source, *, cls: Any = None, new: Optional[Callable[[], Any]] = None
) -> Plugin:
    sample = None
    if new is not None:
        sample = source.call(new, "New()")
        cls = type(sample)
        if cls.__module__ == "builtins":
            raise source.error(f"New() returns {_a(sample)}; it must return the plugin's object")
    handlers = _checked_handlers(source, cls)
    try:
        record: Record = source.call(lambda: read_structure(cls), f"reading {cls.__name__}")
        schema = source.call(lambda: _schema(source, cls, record, sample), "deriving the schema")
    except UnsupportedType as error:
        raise source.error(str(error)) from error
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
        coroutines=_coroutines(cls, handlers),
        pdk=typed_pdk,
    )


def native_plugin(source: Source) -> Plugin:
    """The plugin of a native library, whose file has been checked.

    :raises PluginError: when it cannot be opened or its table is not a plugin's.
    """
    from kongps.compiled.native import NativeLibrary

    library = NativeLibrary(source.name, source.path)
    try:
        schema = own_schema(source.name, library.schema)
    except SchemaError as error:
        raise source.error(str(error)) from None
    return Plugin(
        source.name,
        version=library.version,
        priority=library.priority,
        schema=schema,
        make=library.new_instance,
        handlers={phase: phase for phase in library.phases},
        pdk=bare_pdk,
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
    pdk: Callable[[], Any],
) -> Plugin:
    """The plugin, with what the attributes of its class or module say."""

    def attribute(*names: str) -> Any:
        return _attribute(source, cls, names, fields)

    blocking = _blocking(source, attribute("blocking"))

    def placed() -> Placed:
        return place(
            source.path,
            source.module,
            phases=handlers,
            coroutines=coroutines,
            blocking=blocking,
            made_for_threads=pdk is not typed_pdk,
        )

    return Plugin(
        source.name,
        version=_version(source, attribute("version", "Version"), strict=pdk is typed_pdk),
        priority=_priority(source, attribute("priority", "Priority")),
        schema=schema,
        make=make,
        handlers=handlers,
        pdk=pdk,
        place=placed,
        pipelined=_pipelined(source, attribute("pipelining")),
        on_error=_on_error(source, attribute("on_error")),
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
    written = _attribute(source, cls, ("Schema", "schema"), names)
    plugin_fields = _attribute(source, cls, ("plugin_fields",), names)
    entity_checks = _attribute(source, cls, ("entity_checks",), names)
    try:
        if written is None:
            return assemble(
                source.name, record.schema("config", sample), plugin_fields or (), entity_checks
            )
        whole = own_schema(source.name, written)
        if plugin_fields is None and entity_checks is None:
            return whole
        if isinstance(written, dict):
            raise SchemaError("Schema is a whole schema; put plugin_fields and entity_checks in it")
        return assemble(
            source.name, whole["fields"][-1]["config"], plugin_fields or (), entity_checks
        )
    except SchemaError as error:
        raise source.error(str(error)) from None
