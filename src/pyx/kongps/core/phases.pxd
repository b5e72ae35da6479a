"""The phases in which Kong calls a plugin, numbered as the core knows them."""

cdef enum Phase:
    CERTIFICATE, REWRITE, ACCESS, RESPONSE, PREREAD, LOG
    PHASES   # how many there are
    NO_PHASE = -1

cdef int phase_number(const char* name, size_t size) noexcept
cdef str phase_name(int phase)
cdef int phase_bit(object name) except -1
