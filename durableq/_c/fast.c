/* The compiled hot path: the usual put, get and ack, and nothing else.
 *
 * Each call below does one operation from lock to unlock exactly as its twin in Python does (`TailEnd.append`, `HeadEnd.take`,
 * `Settler.ack`: the reference, and the place where the order of stores is explained). Whatever is not usual, a shutdown,
 * a delay, a damaged record, a batch of space to give back, a full disk, a dead holder, it leaves to them: it
 * answers 0, and has changed nothing that exists. So there is one implementation of every rule, and a second one of the
 * common case only, which a kill can cut at any instruction and an interrupt cannot cut at all.
 *
 * Stores into the mapped words go through `volatile` pointers: a killed process leaves the stores that it made, in the order
 * in which they are written here. Publishing stores are releases, so that other processors see them in that order too.
 *
 * The GIL is held except around system calls. Nobody waits for a lock with the GIL in hand for longer than a short spin.
 */

#include "ends.h"

#include "append.h"
#include "ledger.h"
#include "marks.h"
#include "records.h"
#include "take.h"
#include "ack.h"

static PyObject *fast_bind(Ends *self, PyObject *args)
{
    PyObject *map;
    unsigned int salt;
    unsigned long long dirty_word, lent_word;
    unsigned short own_code;
    int fd, lends_plainly, returns_plainly;
    if (!PyArg_ParseTuple(args, "OiIKKHpp", &map, &fd, &salt, &dirty_word, &lent_word, &own_code, &lends_plainly,
                          &returns_plainly))
        return NULL;
    if (self->map.obj)
        PyBuffer_Release(&self->map);
    if (PyObject_GetBuffer(map, &self->map, PyBUF_WRITABLE))
        return NULL;
    self->words = self->map.buf;
    self->fd = fd;
    self->salt = salt;
    self->dirty_word = dirty_word;
    self->lent_word = lent_word;
    self->own_code = own_code;
    self->lends_plainly = lends_plainly;
    self->returns_plainly = returns_plainly;
    unmap_marks(self);
    self->buffered = self->last_size = 0;
    self->buffer_at = self->tail_seen = 0;
    self->enabled = 1;
    Py_RETURN_NONE;
}

static PyObject *fast_unbind(Ends *self, PyObject *Py_UNUSED(none))
{
    self->enabled = 0;
    unmap_marks(self);
    Py_RETURN_NONE;
}

static void ends_dealloc(Ends *self)
{
    unmap_marks(self);
    if (self->map.obj)
        PyBuffer_Release(&self->map);
    PyMem_Free(self->buffer);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

#define MEMBER(name, kind, field) {name, kind, offsetof(Ends, field), 0, NULL}
static PyMemberDef members[] = {
    MEMBER("_unfit", T_BOOL, unfit),
    MEMBER("_look_at", T_DOUBLE, look_at),
    MEMBER("_tail_calm", T_LONGLONG, tail_calm),
    MEMBER("_calm", T_LONGLONG, calm),
    MEMBER("_base", T_ULONGLONG, base),
    MEMBER("_head_base", T_ULONGLONG, head_base),
    MEMBER("_handed_out", T_ULONGLONG, handed_out),
    MEMBER("_ledger_region", T_LONGLONG, ledger_region),
    MEMBER("_ledger_address", T_ULONGLONG, ledger_address),
    {NULL, 0, 0, 0, NULL},
};

#define METHOD(name, function, text) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, text}
static PyMethodDef methods[] = {
    {"_fast_bind", (PyCFunction)fast_bind, METH_VARARGS, "(map, fd, salt, dirty_word, lent_word, own_code, plain leases, plain returns)"},
    {"_fast_unbind", (PyCFunction)fast_unbind, METH_NOARGS, "Leave everything to Python from now on."},
    METHOD("_fast_append", fast_append, "(payload, tag): 1 if it was appended, 2 if somebody is to be told, else 0"),
    METHOD("_fast_append_many", fast_append_many, "(payloads, tag): as _fast_append, all of them or none"),
    METHOD("_fast_take", fast_take, "(box, limit, done, reserved, patient): as HeadEnd.take; answers as _fast_append"),
    METHOD("_fast_ack", fast_ack, "(position, index, count): as Settler.ack; answers as _fast_append"),
    {NULL, NULL, 0, NULL},
};

static PyTypeObject ends_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "durableq._fast.Ends",
    .tp_doc = "The compiled part of a handle; see the head of fast.c.",
    .tp_basicsize = sizeof(Ends),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_dealloc = (destructor)ends_dealloc,
    .tp_members = members,
    .tp_methods = methods,
};

static PyObject *crc32_for_tests(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer data;
    unsigned int start = 0;
    if (!PyArg_ParseTuple(args, "y*|I", &data, &start))
        return NULL;
    uint32_t sum = crc32_of(data.buf, (size_t)data.len, start);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(sum);
}

static PyMethodDef functions[] = {
    {"crc32", crc32_for_tests, METH_VARARGS, "(data, start=0): as zlib.crc32"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "durableq._fast", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__fast(void)
{
    static const unsigned long layout[] = LAYOUT;
    static const uint8_t done = DONE;
    crc32_prepare();
    if (pthread_atfork(NULL, NULL, count_fork))
        return PyErr_NoMemory();
    int fd = memfd_create("durableq-done", MFD_CLOEXEC);
    if (fd >= 0) { /* never as 0, 1 or 2, where these are closed: what a program prints would go there */
        done_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
    }
    if (done_fd >= 0 && pwrite(done_fd, &done, 1, 0) != 1) {
        close(done_fd);
        done_fd = -1;
    }
    PyObject *module = PyModule_Create(&definition), *numbers = PyTuple_New(sizeof layout / sizeof *layout);
    if (!module || !numbers || PyType_Ready(&ends_type))
        return NULL;
    for (size_t n = 0; n < sizeof layout / sizeof *layout; n++)
        PyTuple_SET_ITEM(numbers, n, PyLong_FromUnsignedLong(layout[n]));
    if (PyModule_AddObject(module, "LAYOUT", numbers) || PyModule_AddObjectRef(module, "Ends", (PyObject *)&ends_type))
        return NULL;
    return module;
}
