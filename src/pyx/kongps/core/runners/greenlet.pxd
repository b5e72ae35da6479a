"""The C interface of the greenlet package."""

cdef extern from "greenlet.h":
    ctypedef class greenlet.greenlet [object PyGreenlet, check_size ignore]:
        pass

    void PyGreenlet_Import()
    greenlet PyGreenlet_New(object run, void* parent)
    greenlet PyGreenlet_GetCurrent()
    object PyGreenlet_Switch(greenlet target, void* args, void* kwargs)
    object PyGreenlet_Throw(greenlet target, object kind, object value, void* traceback)
