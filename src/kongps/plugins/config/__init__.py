"""A plugin's configuration: from its structure to Kong's schema, from Kong's JSON to the structure.

A structure is a class with annotated fields: a dataclass, a ``msgspec.Struct`` or a plain class;
inside it TypedDicts and NamedTuples as well. :func:`read_structure` reads one when its plugin is
loaded, and finds there what Kong cannot hold; the :class:`Record` that it returns then converts
each instance's configuration and describes itself for Kong.

msgspec converts the single values. What is here is the mapping: names in the datastore, nulls
that mean "unset", Lua's empty tables, defaults, and the path to a value that does not fit. No
message made here carries a value of the configuration, which may be a secret.
"""

from __future__ import annotations

from kongps.plugins.config.structures import Record, read_structure

__all__ = ["Record", "read_structure"]
