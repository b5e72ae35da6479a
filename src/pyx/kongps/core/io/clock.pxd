"""Clocks that never go back, in seconds."""

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.types cimport clockid_t

cdef extern from "<time.h>" nogil:
    clockid_t CLOCK_MONOTONIC_COARSE


cdef inline double read_clock(clockid_t clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef inline double monotonic() noexcept nogil:
    """Exact."""
    return read_clock(CLOCK_MONOTONIC)


cdef inline double coarse_monotonic() noexcept nogil:
    """To the tick, a few ms, which costs little; of the same clock."""
    return read_clock(CLOCK_MONOTONIC_COARSE)
