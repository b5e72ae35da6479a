"""Native plugins' side of the PDK: ``include/kongps/plugin.h`` over an event."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from kongps.core.dispatch.event cimport Event
from kongps.core.dispatch.namespace cimport Namespace

cdef extern from "kongps/plugin.h":
    enum:
        KONGPS_PLUGIN_API
        KONGPS_OK, KONGPS_ERROR, KONGPS_ENDED, KONGPS_FAILED
        KONGPS_NIL, KONGPS_BOOLEAN, KONGPS_INTEGER, KONGPS_NUMBER, KONGPS_STRING, KONGPS_TABLE
        KONGPS_JSON, KONGPS_BYTES

    ctypedef union KongpsAs "kongps_as":
        int64_t boolean
        int64_t integer
        double number
        const char* text
        uint64_t table

    ctypedef struct Value "kongps_value":
        int32_t type
        uint64_t size
        KongpsAs as_ "as"

    ctypedef struct Handle "kongps_kong":
        const API* api
        void* server
        int32_t phase

    ctypedef struct API "kongps_api":
        uint32_t api
        uint32_t size
        int (*call)(Handle*, const char*, const Value*, size_t, Value*) noexcept
        int (*entry)(Handle*, const Value*, uint64_t, Value*, Value*) noexcept
        int (*field)(Handle*, const Value*, const char*, Value*) noexcept
        int (*json)(Handle*, const Value*, Value*) noexcept
        const char* (*error)(Handle*) noexcept
        int (*fail)(Handle*, const char*) noexcept

    ctypedef int (*HandlerFunction "kongps_handler")(void*, Handle*) noexcept


cdef class NativeEvent:
    """What stands behind a ``kongps_kong`` while its handler runs."""
    cdef Handle handle
    cdef Event event               # None: no handler runs with this handle
    cdef unsigned long thread
    cdef list kept                 # what results point to
    cdef object ended              # what the handler is to end with; None while it goes on
    cdef object failure            # what the last failed call raised
    cdef const char* message       # the same as text
    cdef bytes reason              # what the plugin said with kongps_fail
    cdef dict listed               # the entries of maps that were asked for by place

    cdef int refused(self) noexcept
    cdef int failed(self, object error) noexcept
    cdef object take(self, const Value* value)
    cdef int give(self, object value, Value* result) except -1
    cdef int call(self, const char* function, const Value* arguments, size_t count,
                  Value* result) noexcept
    cdef object table(self, const Value* table)
    cdef int entry(self, const Value* table, uint64_t place, Value* key, Value* value) noexcept
    cdef int field(self, const Value* table, const char* key, Value* value) noexcept
    cdef int json(self, const Value* value, Value* text) noexcept
    cdef int fail(self, const char* reason) noexcept


cdef class NativeHandler:
    """A handler of a native plugin's instance, as a Python callable."""
    cdef HandlerFunction function
    cdef void* instance
    cdef object owner              # keeps the instance and its library
