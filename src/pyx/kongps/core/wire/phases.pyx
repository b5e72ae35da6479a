"""The phases in which Kong calls a plugin, by number."""

from libc.string cimport memcmp

from kongps.phases import PHASE_NAMES


cdef int phase_number(const char* name, size_t size) noexcept:
    """The number of the phase called `name`, or ``NO_PHASE``."""
    if size == 6 and memcmp(name, b"access", 6) == 0:
        return ACCESS
    if size == 3 and memcmp(name, b"log", 3) == 0:
        return LOG
    if size == 8 and memcmp(name, b"response", 8) == 0:
        return RESPONSE
    if size == 7 and memcmp(name, b"rewrite", 7) == 0:
        return REWRITE
    if size == 7 and memcmp(name, b"preread", 7) == 0:
        return PREREAD
    if size == 11 and memcmp(name, b"certificate", 11) == 0:
        return CERTIFICATE
    return NO_PHASE


cdef str phase_name(int phase):
    return <str>PHASE_NAMES[phase]


cdef int phase_bit(object name) except -1:
    """The bit of the phase called `name` in a set of phases.

    :raises ValueError: when there is no such phase.
    """
    try:
        return 1 << PHASE_NAMES.index(name)
    except ValueError:
        raise ValueError(
            f"{name!r} is not a phase; the phases are {', '.join(PHASE_NAMES)}"
        ) from None
