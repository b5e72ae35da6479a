"""The table of PDK functions: names, parameters and phases, checked before anything is sent.

Kong silently abandons an event when a PDK function is called with a wrong argument or in
a wrong phase. So every call is checked here first, against the rows that ``kongps.pdk``
registers.
"""

from libc.stdint cimport uint64_t

from kongps.core.wire.phases cimport phase_bit

TYPE_BITS = {
    "string": STRING,
    "number": NUMBER,
    "boolean": TRUTH,
    "table": TABLE,
    "string[]": STRINGS,
    "any": ANYTHING,
}

cdef dict TABLE_OF_FUNCTIONS = {}


cdef class Function:
    """One row of the PDK table.

    :param name: full name, such as ``kong.request.get_header``.
    :param params: the parameters, such as ``"name: string, limit?: number"``. Types are
        ``string`` (str or bytes), ``number`` (int or float), ``boolean``, ``table`` (dict, list
        or tuple), ``string[]`` (list or tuple of strings) and ``any``, joined by ``|``. A ``?``
        behind the name: may be left out or None. ``...: any`` at the end: any further arguments.
    :param phases: the phases in which Kong lets a plugin server call it.
    :param since: first Kong version that has it.
    :param terminal: Kong never answers the call: the handler ends with it.
    :param unavailable: why it cannot be called from a plugin server; empty when it can.
    :raises ValueError: for a type or a phase that does not exist.
    """

    def __init__(self, str name not None, str params="", *, tuple phases not None,
                 str since not None, bint terminal=False, str unavailable=""):
        cdef str param, type_name
        cdef list names = []
        cdef list types = []
        cdef int bits
        cdef bint optional
        self.name = name
        self.phases = phases
        self.since = since
        self.terminal = terminal
        self.unavailable = unavailable
        self.checked = True
        self.required = 0
        for phase in phases:
            self.phase_bits |= phase_bit(phase)
        for param in filter(None, (part.strip() for part in params.split(","))):
            param, _, type_name = param.partition(":")
            if param == "...":
                self.open_ended = True
                continue
            optional = param.endswith("?")
            bits = 0
            for part in type_name.split("|"):
                if part.strip() not in TYPE_BITS:
                    raise ValueError(f"{name}: {part.strip()!r} is not a type of a parameter")
                bits |= TYPE_BITS[part.strip()]
            names.append(param.rstrip("?"))
            types.append((bits, type_name.strip(), optional))
            if not optional:
                self.required = len(names)
        self.params = tuple(names)
        self.types = tuple(types)

    cdef int check(self, tuple args) except -1:
        """Checks the arguments of a call.

        :raises TypeError: naming the function and the argument that Kong would not take.
        """
        cdef Py_ssize_t index
        cdef Py_ssize_t count = len(args)
        cdef Py_ssize_t known = len(self.types)
        cdef tuple row
        cdef object value
        cdef int bits, kind
        if not self.checked:
            return 0
        if count < self.required:
            raise TypeError(f"{self.name}: the argument {self.params[count]!r} is missing")
        if count > known and not self.open_ended:
            raise TypeError(f"{self.name} takes {known} arguments, not {count}")
        for index in range(min(count, known)):
            row = <tuple>self.types[index]
            bits = <int>row[0]
            value = args[index]
            if bits & STRING and type(value) is str:
                continue
            kind = type_bits(value)
            if bits == ANYTHING or kind & bits & ~STRINGS:
                continue
            if kind & bits and all_strings(value):
                continue
            if value is None and <bint>row[2]:
                continue
            raise TypeError(
                f"{self.name}: the argument {self.params[index]!r} must be "
                f"{row[1]}, not {type(value).__name__}"
            )
        return 0

    def __repr__(self):
        return f"<Function {self.name}({', '.join(self.params)})>"


cdef int type_bits(object value):
    if isinstance(value, (str, bytes, bytearray, memoryview)):
        return STRING
    if isinstance(value, bool):
        return TRUTH
    if isinstance(value, (int, float)):
        return NUMBER
    if isinstance(value, (list, tuple)):
        return TABLE | STRINGS
    if isinstance(value, dict):
        return TABLE
    return 0


cdef bint all_strings(object value):
    for item in value:
        if not isinstance(item, (str, bytes)):
            return False
    return True


cdef Function find_function(str name):
    """The row for `name`, or a row that checks nothing when the table has none."""
    cdef object found = TABLE_OF_FUNCTIONS.get(name)
    cdef Function function
    if found is not None:
        return <Function>found
    function = Function(name, phases=(), since="")
    function.checked = False
    function.phase_bits = -1
    return function


def register(functions):
    """Adds rows to the table.

    :param functions: :class:`Function` rows; a row replaces an earlier one of the same name.
    """
    for function in functions:
        if not isinstance(function, Function):
            raise TypeError("the table of PDK functions takes Function rows")
        TABLE_OF_FUNCTIONS[(<Function>function).name] = function


def ask_once(answers, only):
    """Sets which functions Kong is asked only once for within an event.

    :param answers: by the function's name, the names of the functions that can change its answer;
        64 different ones at most.
    :param only: by the function's name, the arguments, tuples, for which that is so; for those of
        `answers` that are not here it is for any.
    """
    cdef Function function, setter
    cdef list setters = []
    for name, changed_by in answers.items():
        function = <Function?>TABLE_OF_FUNCTIONS[name]
        function.asked_once = True
        function.lasting = tuple(only[name]) if name in only else None
        for setter_name in changed_by:
            setter = <Function?>TABLE_OF_FUNCTIONS[setter_name]
            if setter not in setters:
                setters.append(setter)
                setter.setter = <uint64_t>1 << <int>(len(setters) - 1)
            function.changed_by |= setter.setter


def registered():
    """:returns: the rows, a dict by the function's name."""
    return dict(TABLE_OF_FUNCTIONS)
