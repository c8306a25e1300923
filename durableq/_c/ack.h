/* task_done and Delivery.ack. The twin of Settler.ack. */

static PyObject *fast_ack(Ends *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || unusable(self))
        return PyLong_FromLong(LEFT);
    uint64_t position = PyLong_AsUnsignedLongLong(args[0]), entry = PyLong_AsUnsignedLongLong(args[1]);
    unsigned long count = PyLong_AsUnsignedLong(args[2]);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return PyLong_FromLong(LEFT);
    }
    if (!enter(self, HEAD_MUTEX, H_STATE, &self->calm, SPECIAL))
        return PyLong_FromLong(LEFT);
    Word *words = self->words;
    Columns ledger;
    int64_t found = columns(self, &ledger) ? find(self, &ledger, position, entry) : -1;
    if (found < 0 || ledger.owner[found] != self->own_code || ledger.count[found] != count ||
        !strikes_plainly(self, &ledger, (uint64_t)found)) {
        leave(self, HEAD_MUTEX);
        return PyLong_FromLong(LEFT);
    }
    uint64_t offset = position - self->head_base + STATE_OFFSET;
    int straggler = offset < self->marks_at && self->marks_at - offset <= MARKED; /* the next one is further on again */
    int marked;
    Py_BEGIN_ALLOW_THREADS
    /* The mark first: an entry whose record is done is noticed, a record without an entry would be lost. */
    marked = mark(self, offset, !straggler);
    if (marked)
        strike_out(self, &ledger, (uint64_t)found);
    leave(self, HEAD_MUTEX);
    Py_END_ALLOW_THREADS
    return marked ? answer(self, words[PUT_WAITERS] || words[JOIN_WAITERS], 1) : PyLong_FromLong(LEFT);
}
