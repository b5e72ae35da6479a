"""The table of PDK functions, as the core reads it."""

from libc.stdint cimport uint64_t

cdef enum:
    # Bits of a parameter's types.
    STRING = 1
    NUMBER = 2
    TRUTH = 4
    TABLE = 8
    STRINGS = 16
    ANYTHING = 255

cdef class Function:
    cdef readonly str name
    cdef readonly tuple params
    cdef readonly tuple phases
    cdef readonly str since
    cdef readonly bint terminal
    cdef readonly str unavailable
    cdef int phase_bits
    cdef tuple types              # a bit set for each parameter
    cdef Py_ssize_t required      # how many parameters cannot be left out
    cdef bint open_ended          # takes further arguments of any type
    cdef bint checked             # False for a name that is not in the table
    cdef bint asked_once          # its answer cannot change within an event,
    cdef uint64_t changed_by      # except by a call of one of these setters, a bit each
    cdef tuple lasting            # the arguments for which that is so; None for any
    cdef uint64_t setter          # the bit of this one, if it is such a setter
    # What the protocols made of it for themselves, at its first call.
    cdef bytes msgpack_head
    cdef object protobuf_rpc

    cdef int check(self, tuple args) except -1

cdef Function find_function(str name)
