"""The phases in which Kong calls a plugin, numbered as compiled plugins know them too."""

cdef extern from "kongps/phases.h":
    enum:
        NO_PHASE "KONGPS_NO_PHASE"
        CERTIFICATE "KONGPS_CERTIFICATE"
        REWRITE "KONGPS_REWRITE"
        ACCESS "KONGPS_ACCESS"
        RESPONSE "KONGPS_RESPONSE"
        PREREAD "KONGPS_PREREAD"
        LOG "KONGPS_LOG"

cdef int phase_number(const char* name, size_t size) noexcept
cdef str phase_name(int phase)
cdef int phase_bit(object name) except -1
