"""libFuzzer around the targets; built and used by ``run.py`` alone."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcpy
from posix.unistd cimport _exit

from kongps.core.io.buffer cimport Buffer, buffer_size
from kongps.core.wire.protocol cimport Protocol

import sys
import traceback

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #ifdef __cplusplus
    extern "C"
    #endif
    int LLVMFuzzerRunDriver(int *, char ***, int (*)(const uint8_t *, size_t));
    """
    ctypedef int (*Callback)(const uint8_t*, size_t) noexcept
    int LLVMFuzzerRunDriver(int*, char***, Callback)

cdef object target = None


cdef int one(const uint8_t* data, size_t size) noexcept:
    try:
        target((<const char*>data)[:size])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        abort()
    return 0


def run(function, str program not None, list words not None):
    """Passes a function to libFuzzer, which never returns.

    :param function: takes the bytes of one input; what it raises is a finding.
    :param program: the shell command that runs this again; libFuzzer runs it to minimise.
    :param words: the rest of libFuzzer's command line.
    """
    global target
    cdef int argc = <int>len(words) + 1
    cdef char** argv = <char**>calloc(argc + 1, sizeof(char*))
    cdef list kept = [program.encode(), *(word.encode() for word in words)]
    cdef int index
    target = function
    for index in range(argc):
        argv[index] = PyBytes_AS_STRING(kept[index])
    _exit(LLVMFuzzerRunDriver(&argc, &argv, one))


def exact(Protocol protocol not None):
    """Moves what a protocol has received to memory that ends where it ends.

    A buffer has room behind its bytes; reading there is a fault that the address sanitizer can
    only see when that room is not the buffer's own.
    """
    cdef Buffer* inbox = &protocol.inbox
    cdef size_t size = buffer_size(inbox)
    cdef char* moved
    if size == 0:
        return
    moved = <char*>malloc(size)
    if moved == NULL:
        raise MemoryError
    memcpy(moved, inbox.data + inbox.begin, size)
    free(inbox.data)
    inbox.data = moved
    inbox.begin = 0
    inbox.end = inbox.capacity = size
