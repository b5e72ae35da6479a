from typing import Any, Final

from kongps.core.wire.msgpack_writer import Ext as Ext

LIMITS: Final[dict[str, int]]

def packb(value: object) -> bytes: ...
def unpackb(data: bytes | bytearray | memoryview) -> Any: ...
