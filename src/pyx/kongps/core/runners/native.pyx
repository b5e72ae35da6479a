"""Native plugins' side of the PDK: ``include/kongps/plugin.h`` over an event.

A handler runs in its event's greenlet like a Python one, and a PDK call switches greenlets beneath
the C frames: what they have on the stack is put away and back. An exception cannot cross them. So
one that ends the handler is kept, every call from then on says that the event is over, and it is
raised again when the C code has returned.
"""

import json

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memset, strlen

from kongps.core.dispatch.event cimport Event
from kongps.core.dispatch.namespace cimport Namespace
from kongps.core.wire.function cimport find_function

from kongps.errors import NativeError

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

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef enum:
    # Handles without an event that are kept for the next one. They are never freed otherwise than
    # by falling out here, so that most misuse of an old one meets a handle that says "over".
    MOST_IDLE_HANDLES = 256

cdef const char* EMPTY = b""
cdef const char* OUTSIDE = (
    b"called from outside the handler of its event: it has returned, or this is another thread"
)

cdef list idle = []

cdef API TABLE


# Makes the arguments of a function of kong.log fit to be sent; see `use_log_arguments`.
cdef object log_arguments = None


def use_log_arguments(convert):
    """Sets what converts the arguments of a function of kong.log, given its name and them."""
    global log_arguments
    log_arguments = convert


cdef object decoded(const char* text, size_t size):
    return PyUnicode_DecodeUTF8(text, <Py_ssize_t>size, "surrogateescape")


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

    def __init__(self):
        self.handle.api = &TABLE
        self.handle.server = <void*>self
        self.kept = []
        self.message = EMPTY

    cdef int refused(self) noexcept:
        """Whether a call cannot be carried out; the code to return then.

        Nothing of Python is touched before it is clear that this is the handler's thread.
        """
        if self.event is None or PyThread_get_thread_ident() != self.thread:
            return KONGPS_ERROR
        return KONGPS_ENDED if self.ended is not None else KONGPS_OK

    cdef int failed(self, object error) noexcept:
        """Keeps what a call raised, and gives the code for it."""
        if not isinstance(error, Exception):
            self.ended = error
            return KONGPS_ENDED
        self.failure = error
        try:
            text = str(error).encode("utf-8", "surrogateescape")
        except Exception:
            text = type(error).__name__.encode()
        self.kept.append(text)
        self.message = PyBytes_AS_STRING(text)
        return KONGPS_ERROR

    cdef object take(self, const Value* value):
        """A value of the plugin's as a Python one."""
        if value.type == KONGPS_STRING:
            return decoded(value.as_.text, value.size)
        if value.type == KONGPS_NIL:
            return None
        if value.type == KONGPS_INTEGER:
            return value.as_.integer
        if value.type == KONGPS_NUMBER:
            return value.as_.number
        if value.type == KONGPS_BOOLEAN:
            return value.as_.boolean != 0
        if value.type == KONGPS_TABLE:
            return self.kept[value.as_.table]
        if value.type == KONGPS_JSON:
            return json.loads(decoded(value.as_.text, value.size))
        if value.type == KONGPS_BYTES:
            return PyBytes_FromStringAndSize(value.as_.text, <Py_ssize_t>value.size)
        raise TypeError(f"{value.type} is not a type of a value")

    cdef int give(self, object value, Value* result) except -1:
        """A Python value as one of the plugin's; what it points to is kept."""
        cdef Py_ssize_t size = 0
        memset(result, 0, sizeof(Value))
        if value is None:
            result.type = KONGPS_NIL
        elif isinstance(value, str):
            try:
                result.as_.text = PyUnicode_AsUTF8AndSize(value, &size)
            except UnicodeEncodeError:
                return self.give(value.encode("utf-8", "surrogateescape"), result)
            result.type = KONGPS_STRING
            result.size = size
            self.kept.append(value)
        elif isinstance(value, bool):
            result.type = KONGPS_BOOLEAN
            result.as_.boolean = value
        elif isinstance(value, int) and -(1 << 63) <= value < (1 << 63):
            result.type = KONGPS_INTEGER
            result.as_.integer = value
        elif isinstance(value, (int, float)):
            result.type = KONGPS_NUMBER
            result.as_.number = value
        elif isinstance(value, bytes):
            result.type = KONGPS_STRING
            result.size = PyBytes_GET_SIZE(value)
            result.as_.text = PyBytes_AS_STRING(value)
            self.kept.append(value)
        elif isinstance(value, (list, tuple, dict)):
            result.type = KONGPS_TABLE
            result.size = len(value)
            result.as_.table = len(self.kept)
            self.kept.append(value)
        else:
            return self.give(str(value), result)
        return 0

    # What the functions of the table do, once it is clear that they may touch Python.

    cdef int call(self, const char* function, const Value* arguments, size_t count,
                  Value* result) noexcept:
        cdef Event event = self.event
        cdef str name
        cdef tuple args
        cdef object value
        try:
            name = decoded(function, strlen(function))
            if count == 1:
                args = (self.take(arguments),)
            elif count == 2:
                args = (self.take(arguments), self.take(arguments + 1))
            else:
                args = tuple([self.take(arguments + place) for place in range(count)])
            if name.startswith("kong.log"):
                args = log_arguments(name, args)
            value = event.runner.call(event, find_function(name), args)
            if result != NULL:
                self.give(value, result)
            return KONGPS_OK
        except BaseException as error:
            return self.failed(error)

    cdef object table(self, const Value* table):
        if table.type != KONGPS_TABLE or table.as_.table >= <uint64_t>len(self.kept):
            raise TypeError("the value is not a table of this event")
        return self.kept[table.as_.table]

    cdef int entry(self, const Value* table, uint64_t place, Value* key, Value* value) noexcept:
        cdef object entries, listed, name, item
        try:
            entries = self.table(table)
            if place >= <uint64_t>len(entries):
                raise IndexError(f"there is no entry {place} in a table of {len(entries)}")
            if isinstance(entries, dict):
                if self.listed is None:
                    self.listed = {}
                listed = self.listed.get(table.as_.table)
                if listed is None:
                    listed = self.listed[table.as_.table] = list(entries.items())
                name, item = listed[place]
            else:
                name, item = place + 1, entries[place]
            if key != NULL:
                self.give(name, key)
            if value != NULL:
                self.give(item, value)
            return KONGPS_OK
        except BaseException as error:
            return self.failed(error)

    cdef int field(self, const Value* table, const char* key, Value* value) noexcept:
        try:
            entries = self.table(table)
            if isinstance(entries, dict) and value != NULL:
                self.give(entries.get(decoded(key, strlen(key))), value)
            return KONGPS_OK
        except BaseException as error:
            return self.failed(error)

    cdef int json(self, const Value* value, Value* text) noexcept:
        try:
            self.give(json.dumps(self.take(value), default=as_text), text)
            return KONGPS_OK
        except BaseException as error:
            return self.failed(error)

    cdef int fail(self, const char* reason) noexcept:
        self.reason = PyBytes_FromStringAndSize(reason, strlen(reason))
        return KONGPS_FAILED


cdef object as_text(object value):
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


# The table. These may be called from anywhere, also without the GIL: they hold no object
# before `refused` has said that this is the handler's thread.

cdef int native_call(Handle* kong, const char* function, const Value* arguments, size_t count,
                     Value* result) noexcept:
    cdef int code = (<NativeEvent>kong.server).refused()
    if result != NULL:
        memset(result, 0, sizeof(Value))
    return code or (<NativeEvent>kong.server).call(function, arguments, count, result)


cdef int native_entry(Handle* kong, const Value* table, uint64_t place, Value* key,
                      Value* value) noexcept:
    cdef int code = (<NativeEvent>kong.server).refused()
    return code or (<NativeEvent>kong.server).entry(table, place, key, value)


cdef int native_field(Handle* kong, const Value* table, const char* key, Value* value) noexcept:
    cdef int code = (<NativeEvent>kong.server).refused()
    if value != NULL:
        memset(value, 0, sizeof(Value))
    return code or (<NativeEvent>kong.server).field(table, key, value)


cdef int native_json(Handle* kong, const Value* value, Value* text) noexcept:
    return (<NativeEvent>kong.server).refused() or (<NativeEvent>kong.server).json(value, text)


cdef const char* native_error(Handle* kong) noexcept:
    if (<NativeEvent>kong.server).refused() == KONGPS_ERROR:
        return OUTSIDE
    return (<NativeEvent>kong.server).message


cdef int native_fail(Handle* kong, const char* reason) noexcept:
    if (<NativeEvent>kong.server).refused() == KONGPS_ERROR:
        return KONGPS_FAILED
    return (<NativeEvent>kong.server).fail(reason)


TABLE.api = KONGPS_PLUGIN_API
TABLE.size = sizeof(API)
TABLE.call = native_call
TABLE.entry = native_entry
TABLE.field = native_field
TABLE.json = native_json
TABLE.error = native_error
TABLE.fail = native_fail


cdef class NativeHandler:
    """A handler of a native plugin's instance, to be called with a ``kong``.

    :param function: the address of the handler.
    :param instance: the address of the instance, 0 for NULL.
    :param owner: what has to stay for as long as the handler does.
    :raises NativeError: when called, if the handler returns anything but KONGPS_OK.
    """

    cdef HandlerFunction function
    cdef void* instance
    cdef object owner              # keeps the instance and its library

    def __init__(self, function, instance, owner):
        self.function = <HandlerFunction><uintptr_t>function
        self.instance = <void*><uintptr_t>instance
        self.owner = owner

    def __call__(self, Namespace kong not None):
        cdef NativeEvent native = <NativeEvent>idle.pop() if idle else NativeEvent()
        cdef int code
        native.event = kong.event
        native.thread = PyThread_get_thread_ident()
        native.handle.phase = kong.event.phase
        try:
            code = self.function(self.instance, &native.handle)
            if native.ended is not None:
                raise native.ended
            if code != KONGPS_OK:
                raise failure_of(native, code)
        finally:
            native.event = None
            native.ended = native.failure = native.reason = native.listed = None
            native.message = EMPTY
            native.kept = []
            if len(idle) < MOST_IDLE_HANDLES:
                idle.append(native)


cdef object failure_of(NativeEvent native, int code):
    if native.reason is not None:
        error = NativeError(native.reason.decode("utf-8", "replace"))
    elif code == KONGPS_ERROR and native.failure is not None:
        return native.failure
    else:
        error = NativeError(f"the handler returned {code}")
    error.__cause__ = native.failure
    return error
