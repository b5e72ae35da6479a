"""What a handler gets as `kong`: namespaces of the PDK, bound to an event."""

from kongps.core.dispatch.event cimport Event
from kongps.core.wire.function cimport find_function
from kongps.core.wire.phases cimport phase_name

cdef extern from *:
    """
    /* An object without __init__: a namespace is made at each access of `kong.request`. */
    static PyObject* kongps_new_object(PyObject* type, PyObject* no_args) {
        return ((PyTypeObject*)type)->tp_new((PyTypeObject*)type, no_args, NULL);
    }
    """
    object kongps_new_object(object kind, tuple no_args)


cdef object make_kong(Event event):
    """The `kong` for the handler of an event."""
    if event.instance.kong_is_plain:
        return bind(event.instance.kong, event)
    return event.instance.kong(event)


cdef object bind(object kind, Event event):
    """Makes a namespace for an event. `kind` was checked to be a plain class of namespaces."""
    cdef Namespace made = <Namespace>kongps_new_object(kind, ())
    made.event = event
    return made


def is_plain(kind):
    """Whether a class of namespaces leaves making its objects to :class:`Namespace`."""
    return (
        isinstance(kind, type)
        and issubclass(kind, Namespace)
        and kind.__init__ is Namespace.__init__
        and kind.__new__ is Namespace.__new__
    )


cdef class Namespace:
    """A part of the PDK, bound to one event; ``kong`` itself and ``kong.request`` are such.

    :param event: the event whose request it is about.
    """

    def __init__(self, Event event not None):
        self.event = event

    def _call(self, str function not None, *args):
        """Asks Kong to call a PDK function and waits for the answer.

        :param function: the full name, such as ``kong.request.get_header``.
        :param args: its arguments; None at the end is left out.
        :returns: what the function returned; nil is None.
        :raises PDKError: when Kong says that it failed, when it cannot be called in this phase
            or from a plugin server, and when the event is over.
        :raises TypeError: for an argument that Kong would not take.
        """
        return self.event.runner.call(self.event, find_function(function), args)

    def _as(self, kind):
        """:returns: another namespace for the same event; `kind` is a plain class of one."""
        return bind(kind, self.event)

    @property
    def _phase(self):
        """The name of the phase that the event is in."""
        return phase_name(self.event.phase)


cdef class namespace:
    """Class attribute that gives a :class:`Namespace` bound to the same event.

    :param kind: the class of the namespace.
    """
    cdef object kind

    def __init__(self, kind):
        if not is_plain(kind):
            raise TypeError("a namespace is a class derived from Namespace, without __init__")
        self.kind = kind

    def __get__(self, holder, owner):
        if holder is None:
            return self.kind
        return bind(self.kind, (<Namespace?>holder).event)
