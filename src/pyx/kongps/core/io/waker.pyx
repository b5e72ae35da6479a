"""A pipe that ends the loop's sleep, from signal handlers and other threads."""

import os

from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close as close_fd
from posix.unistd cimport read as read_fd
from posix.unistd cimport write as write_fd


cdef class Waker:
    """A pipe: the loop watches one end, and whoever wakes it writes to the other."""

    def __cinit__(self):
        self.read_fd, self.write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def __dealloc__(self):
        if self.intact():
            self.close()

    cdef int wake(self) noexcept:
        """Ends the loop's sleep. From any thread, or a signal handler."""
        write_fd(self.write_fd, b"\0", 1)  # into a full pipe nothing need be written
        return 0

    cdef int drain(self) except -1:
        """Takes out what was written."""
        cdef char[256] ignored
        while read_fd(self.read_fd, ignored, sizeof(ignored)) == sizeof(ignored):
            pass
        return 0

    cdef bint intact(self) noexcept:
        """Whether both ends are still open, and ends of one pipe."""
        cdef struct_stat read_end, write_end
        return (
            fstat(self.read_fd, &read_end) == 0
            and fstat(self.write_fd, &write_end) == 0
            and read_end.st_ino == write_end.st_ino
            and read_end.st_dev == write_end.st_dev
        )

    cdef int close(self) noexcept:
        """Closes both ends, in the child of a fork too."""
        close_fd(self.read_fd)
        close_fd(self.write_fd)
        self.read_fd = self.write_fd = -1
        return 0
