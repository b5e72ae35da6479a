"""Protocol Buffers messages and their fields, from the table in ``kongps.core.wire.tables``."""

from libc.stdint cimport uint64_t

from kongps.core.wire.tables import MESSAGES

KINDS = {
    "bool": BOOL, "int32": INT32, "int64": INT64, "double": DOUBLE, "string": STRING,
    "bytes": BYTES,
}
WELL_KNOWN = {"Value": VALUE, "Struct": STRUCT, "ListValue": LIST_VALUE, "Empty": EMPTY}

cdef dict TYPES = {}


cdef class FieldType:
    """One field of a message."""


cdef class MessageType:
    """A message of ``tables.MESSAGES``, or a well-known one."""

    def __init__(self, str name not None):
        self.name = name
        self.well_known = WELL_KNOWN.get(name, PLAIN_MESSAGE)
        self.fields = []

    cdef FieldType find(self, uint64_t number):
        cdef FieldType field
        for field in self.fields:
            if <uint64_t>field.number == number:
                return field
        return None


def _make_types():
    """Reads the table."""
    cdef MessageType kind
    cdef FieldType field
    cdef str text, described, type_name
    for name in (*WELL_KNOWN, *MESSAGES):
        TYPES[name] = MessageType(name)
    for name, text in MESSAGES.items():
        kind = <MessageType>TYPES[name]
        for described in filter(None, text.split(", ")):
            place, type_name = described.split()
            field = FieldType()
            field.name, number = place.split("=")
            field.number = int(number)
            field.repeated = type_name.endswith("[]")
            field.mapped = type_name.endswith("{}")
            type_name = type_name[:-2] if field.repeated or field.mapped else type_name
            field.kind = KINDS.get(type_name, MESSAGE)
            if field.kind == MESSAGE:
                field.message = <MessageType>TYPES[type_name]
            kind.fields.append(field)


_make_types()


cdef MessageType message_type(str name):
    return <MessageType>TYPES[name]
