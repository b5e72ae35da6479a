"""What the C library keeps of memory that was freed."""

from kongps.core.io.clock cimport monotonic

cdef extern from *:
    """
    #include <malloc.h>
    #ifdef __GLIBC__
    #define kongps_give_back() malloc_trim(0)
    #else
    #define kongps_give_back() 0  /* musl gives back at once what it can */
    #endif
    """
    int kongps_give_back() nogil


def give_back_memory():
    """Asks the C library to return whole free pages to the system, also between those in use.

    By itself it returns only what lies behind the last block in use, so that a process would stay
    as large as it ever was. What it keeps for each thread is returned too. Other threads run
    meanwhile, as long as they need no memory of it.

    :returns: the seconds it took, without waiting for the GIL.
    """
    cdef double began, took
    with nogil:
        began = monotonic()
        kongps_give_back()
        took = monotonic() - began
    return took
