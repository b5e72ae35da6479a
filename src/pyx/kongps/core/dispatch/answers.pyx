"""Answers of Kong that hold for the rest of their event, so that Kong is asked once.

Which functions these are, and which setters change an answer, is in ``kongps.pdk.asked_once``.
"""

cdef enum:
    LONGEST_REQUEST_ID = 128    # characters; a UUID has 36

# Headers of a request that have its id, set by Kong's correlation-id plugin or by a proxy before Kong.
cdef frozenset REQUEST_ID_HEADERS = frozenset({
    "kong-request-id", "x-kong-request-id", "x-request-id", "x-correlation-id",
})


cdef class CachedAnswer:
    """One answer, and the one cached before it; an event has the newest."""


cdef CachedAnswer find_answer(CachedAnswer newest, Function function, tuple args):
    """The answer to a call; None if Kong has not been asked yet."""
    cdef CachedAnswer answer = newest
    while answer is not None:
        if answer.function is function and (answer.args is args or answer.args == args):
            return answer
        answer = answer.next
    return None


cdef CachedAnswer add_answer(CachedAnswer newest, Function function, tuple args, object value):
    """Adds an answer that cannot change, unless the plugin could change the value itself."""
    cdef CachedAnswer answer
    if value is not None and not isinstance(value, str) and not isinstance(value, (int, float)):
        return newest
    if function.lasting is not None and args not in function.lasting:
        return newest
    answer = CachedAnswer.__new__(CachedAnswer)
    answer.function = function
    answer.args = args
    answer.value = value
    answer.next = newest
    return answer


cdef CachedAnswer drop_changed(CachedAnswer newest, Function setter):
    """The answers without those that a call of `setter` may change."""
    cdef CachedAnswer answer = newest
    cdef CachedAnswer kept = None
    cdef CachedAnswer next_answer
    while answer is not None:
        next_answer = answer.next
        if not answer.function.changed_by & setter.setter:
            answer.next = kept
            kept = answer
        answer = next_answer
    return kept


cdef object find_request_id(CachedAnswer newest):
    """The request's id, if the handler has asked for it; else None."""
    cdef CachedAnswer answer = newest
    while answer is not None:
        if is_request_id(answer.value) and (
            answer.function.name == "kong.nginx.get_var"
            or answer.function.name == "kong.request.get_header"
            # The plugin may have a str class of its own: its methods are not called.
            and isinstance(answer.args[0], str)
            and str.lower(answer.args[0]) in REQUEST_ID_HEADERS
        ):
            return answer.value
        answer = answer.next
    return None


cdef bint is_request_id(object value) except -1:
    """Whether text can go into the log as a request's id: a client can send anything as a header."""
    return (
        isinstance(value, str) and 0 < len(value) <= LONGEST_REQUEST_ID
        and value.isascii() and value.isprintable() and " " not in value
    )
