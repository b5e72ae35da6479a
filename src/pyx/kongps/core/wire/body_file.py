"""A request's body that nginx wrote to a file, because it did not fit its buffer."""

from __future__ import annotations

import os
from typing import Any

from kongps.errors import PDKError

# The largest body read, in bytes, unless the plugin allows less; the same as the largest message.
MAX_BODY = 64 * 1024 * 1024


class BodyFile:
    """What Kong answers to ``kong.request.get_raw_body`` over ProtoBuf:1 in place of the body.

    :param path: the file, in nginx's prefix.
    :param limit: bytes that the plugin allows; None or 0 for as many as the server does.
    """

    def __init__(self, path: str, limit: Any = None) -> None:
        self.path = path
        # Not by way of int: a limit may be infinite.
        self.limit = limit if limit and limit < MAX_BODY else MAX_BODY

    def read(self, function: str) -> bytes:
        """The body.

        :param function: the PDK function that it is the answer to.
        :raises PDKError: when the server may not read the file, or it is too large.
        """
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > self.limit:
                    raise PDKError(
                        function, f"the body has {size} bytes, more than the {self.limit} allowed"
                    )
                return file.read()
        except OSError as error:
            raise PDKError(
                function,
                f"Kong wrote the body to {self.path}, which this server cannot read: "
                f"{error.strerror}; run it as the user of nginx's workers, or raise "
                "client_body_buffer_size in kong.conf",
            ) from None
