"""The PDK as Kong answers it: one Python function per PDK function, in one table.

What each takes, returns and refuses, and in which phases, follows recordings of Kong 2.0.5, 2.8.5
and 3.9.1. It deliberately shares nothing with :mod:`kongps.pdk`, so that each can be tested against
the other.
"""

from __future__ import annotations

# Each of them puts its functions into the table.
from kongps.testing.functions import (  # noqa: F401
    client,
    log,
    nginx,
    other,
    request,
    response,
    service,
)
from kongps.testing.functions.table import Answer, Exit, Hang, answer, call, has

__all__ = ["Answer", "Exit", "Hang", "answer", "call", "has"]
