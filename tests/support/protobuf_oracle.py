"""Google's own codec for the messages of ``tests/data/kong_plugin.proto``."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from paths import DATA

LISTED: dict[str, list[dict[str, Any]]] = json.loads(
    (DATA / "pdk" / "protobuf-messages.json").read_text()
)["messages"]
# Listed, but of forms of the protocol that no Kong speaks.
NEVER_SENT = {"StringMap", "PdkArg", "PdkCall", "PdkReturn"}

# The messages that are sent, by the last part of their names, as our table has them.
MESSAGE_FIELDS = {
    name.rpartition(".")[2]: fields for name, fields in LISTED.items() if name not in NEVER_SENT
}
WELL_KNOWN = ("Value", "Struct", "ListValue", "Empty")


def compile_messages(directory: Path) -> None:
    """Compiles the ``.proto`` and adds its messages to the pool of the process."""
    import grpc_tools
    from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2
    from grpc_tools import protoc

    compiled = directory / "kong_plugin.desc"
    status = protoc.main(
        [
            "protoc",
            f"-I{DATA}",
            f"-I{Path(grpc_tools.__file__).parent / '_proto'}",
            f"--descriptor_set_out={compiled}",
            str(DATA / "kong_plugin.proto"),
        ]
    )
    assert status == 0
    assert struct_pb2.DESCRIPTOR  # what ours imports has to be in the pool before it
    found = descriptor_pb2.FileDescriptorSet.FromString(compiled.read_bytes())
    for file in found.file:
        descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


@cache
def message_class(name: str) -> Any:
    """The class of a message, by the last part of its name, or of a well-known type."""
    from google.protobuf import descriptor_pool, empty_pb2, message_factory, struct_pb2

    if name in WELL_KNOWN:
        return getattr(empty_pb2 if name == "Empty" else struct_pb2, name)
    (full,) = [
        listed
        for listed in LISTED
        if listed.rpartition(".")[2] == name and listed not in NEVER_SENT
    ]
    found = descriptor_pool.Default().FindMessageTypeByName(f"kong_plugin_protocol.{full}")
    return message_factory.GetMessageClass(found)


def from_value(value: Any) -> Any:
    """What a google.protobuf.Value stands for."""
    kind = value.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    found = getattr(value, kind)
    if kind == "struct_value":
        return {key: from_value(item) for key, item in found.fields.items()}
    if kind == "list_value":
        return [from_value(item) for item in found.values]
    return found


def to_value(value: Any, message: Any) -> Any:
    """Makes a google.protobuf.Value stand for something."""
    if value is None:
        message.null_value = 0
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, (int, float)):
        message.number_value = value
    elif isinstance(value, str):
        message.string_value = value
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        for key, item in value.items():
            to_value(item, message.struct_value.fields[key])
    else:
        message.list_value.SetInParent()
        for item in value:
            to_value(item, message.list_value.values.add())
    return message


def from_message(message: Any) -> Any:
    """What our codec makes of a message, made from Google's."""
    name = message.DESCRIPTOR.name
    if name == "Empty":
        return None
    if name == "Value":
        return from_value(message)
    if name == "Struct":
        return {key: from_value(item) for key, item in message.fields.items()}
    if name == "ListValue":
        return [from_value(item) for item in message.values]
    result: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            result[field.name] = dict(value)
        elif hasattr(value, "DESCRIPTOR"):
            result[field.name] = from_message(value)
        elif isinstance(value, (str, bytes, int, float)):
            result[field.name] = value
        else:
            result[field.name] = [
                from_message(item) if hasattr(item, "DESCRIPTOR") else item for item in value
            ]
    return result


def to_message(name: str, value: Any) -> Any:
    """Google's message from what our codec would make of it."""
    message = message_class(name)()
    if name == "Empty":
        return message
    if name == "Value":
        return to_value(value, message)
    if name == "Struct":
        for key, item in value.items():
            to_value(item, message.fields[key])
        return message
    if name == "ListValue":
        for item in value:
            to_value(item, message.values.add())
        return message
    for field in MESSAGE_FIELDS[name]:
        if field["name"] not in value:
            continue
        found = value[field["name"]]
        kind = field["type"].rpartition(".")[2]
        place = getattr(message, field["name"])
        if field["type"].startswith("map<"):
            place.update(found)
        elif field.get("repeated"):
            if kind in MESSAGE_FIELDS:
                place.extend(to_message(kind, item) for item in found)
            else:
                place.extend(found)
        elif kind in MESSAGE_FIELDS or kind in WELL_KNOWN:
            place.CopyFrom(to_message(kind, found))
            place.SetInParent()
        else:
            setattr(message, field["name"], found)
    return message
