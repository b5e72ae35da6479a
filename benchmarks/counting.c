/* Switches callgrind's counting on for exactly the calls whose instructions are wanted: giving bytes
 * to a session and taking its answer. Built and used by profile.py; without valgrind it does the
 * same calls and counts nothing. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <valgrind/callgrind.h>

/* feed(receive, data, take) -> take(), having called receive(data) */
static PyObject *feed(PyObject *self, PyObject *args) {
    PyObject *receive, *data, *take, *done, *answer = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOO", &receive, &data, &take))
        return NULL;
    CALLGRIND_TOGGLE_COLLECT;
    done = PyObject_CallFunctionObjArgs(receive, data, NULL);
    if (done) {
        answer = PyObject_CallFunctionObjArgs(take, NULL);
        Py_DECREF(done);
    }
    CALLGRIND_TOGGLE_COLLECT;
    return answer;
}

static PyObject *begin(PyObject *self, PyObject *none) {
    (void)self;
    (void)none;
    CALLGRIND_START_INSTRUMENTATION;
    Py_RETURN_NONE;
}

static PyObject *zero(PyObject *self, PyObject *none) {
    (void)self;
    (void)none;
    CALLGRIND_ZERO_STATS;
    Py_RETURN_NONE;
}

/* dump(name): writes what was counted since zero() to the next file */
static PyObject *dump(PyObject *self, PyObject *args) {
    const char *name;
    (void)self;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    CALLGRIND_DUMP_STATS_AT(name);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"feed", feed, METH_VARARGS, "feed(receive, data, take) -> the answer; counted"},
    {"begin", begin, METH_NOARGS, "Starts instrumentation."},
    {"zero", zero, METH_NOARGS, "Forgets what was counted."},
    {"dump", dump, METH_VARARGS, "dump(name): writes what was counted."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "counting", .m_size = -1, .m_methods = methods,
};

PyMODINIT_FUNC PyInit_counting(void) { return PyModule_Create(&module); }
