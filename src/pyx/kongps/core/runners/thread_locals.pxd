"""The values of ``threading.local`` objects, which CPython keeps in a dict of each thread.

Handlers that take turns on a thread each have a dict of their own.
"""

from cpython.object cimport PyObject

cdef extern from *:
    """
    /* Both dicts may be NULL, as that of a thread is until it is first used. The thread gets the
       caller's reference to the new one, and the caller the thread's to the old one. */
    static inline PyObject* kongps_swap_thread_locals(PyObject* locals) {
        PyThreadState* thread = PyThreadState_Get();
        PyObject* old = thread->dict;
        thread->dict = locals;
        return old;
    }
    """
    PyObject* swap_thread_locals "kongps_swap_thread_locals" (PyObject* locals) noexcept
