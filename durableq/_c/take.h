/* get: what is oldest, lent or done at once. The twin of HeadEnd.take. */

/* Before the head passes them: the done marks of `*count` records from `position` up to `end`, all in the buffer. Where those end
 * that the disk took, the first `*count`; none of the others looks done. Under the head lock, without the GIL. */
static uint64_t mark_done(Ends *self, uint64_t position, uint64_t end, Py_ssize_t *count)
{
    uint64_t offset = position - self->head_base;
    if (*count == 1) { /* a large one is not in the buffer */
        *count = mark(self, offset + STATE_OFFSET, 1);
        return *count ? end : position;
    }
    uint8_t *first = self->buffer + (position - self->buffer_at);
    size_t size = end - position, at = 0;
    Py_ssize_t wanted = *count;
    if (size <= (size_t)wanted << 10) { /* one write of all their bytes: nothing but the marks changes */
        for (; at < size; at += record_size(((Header *)(first + at))->length))
            first[at + STATE_OFFSET] = DONE;
        ssize_t written = pwrite(self->fd, first, size, (off_t)offset);
        for (at = 0, *count = 0; (ssize_t)(at + STATE_OFFSET) < written; at += record_size(((Header *)(first + at))->length))
            ++*count;
    } else
        for (*count = 0; *count < wanted && mark(self, offset + at + STATE_OFFSET, 1); ++*count)
            at += record_size(((Header *)(first + at))->length);
    if (*count < wanted)
        self->buffered = 0;
    return position + at;
}

/* Nothing waits. Look out for more for as long as a sleep and a wake would cost; whether something came.
 *
 * Who takes each item the moment that it is published works on the very pages and cache lines that the producer is writing, and
 * slows both down. So when items come in a stream, a few are let come together. In a dialogue the second one comes only after
 * the first one was answered; there nobody lingers, but for a trial now and then. */
static int look_out(Ends *self)
{
    Word *words = self->words;
    uint64_t behind = 0;
    Py_BEGIN_ALLOW_THREADS
    double start = seconds(), first = 0, now = start;
    while (words[H_STATE] == (uint64_t)self->calm) {
        uint64_t more = (observe(&words[T_COMMIT]) >> 1) - (words[H_COMMIT] >> 1);
        if (more && !behind) {
            first = now;
            if (self->streaming < 0) {
                self->streaming++;
                behind = more;
                break;
            }
        }
        behind = more;
        if (behind >= STREAM)
            break;
        now = seconds();
        if (behind == 1 && now - first > LINGER) {
            self->streaming = -DIALOGUE;
            break;
        }
        if (now - (behind ? first : start) > (behind ? STREAM_FOR : LOOK_OUT))
            break;
        sched_yield(); /* on a busy machine it may be the producer that waits for this processor */
    }
    Py_END_ALLOW_THREADS
    return behind != 0;
}

/* One item for the box, with its payload if that was read already; 0, and an error, if there is no memory for it.
 *
 * Up to Python 3.11 an allocation may collect garbage at once, and so run a finalizer that uses this very queue under its lock. Later
 * ones collect between two instructions of Python's. */
static int put_into(PyObject *box, Header *header, long long entry, long deliveries, PyObject *payload)
{
#if PY_VERSION_HEX < 0x030C0000
    int collecting = PyGC_Disable();
#endif
    int put = 0;
    PyObject *taken = PyTuple_New(6);
    if (!payload)
        payload = PyBytes_FromStringAndSize((char *)header + HEADER_SIZE, header->length);
    if (taken && payload) {
        PyTuple_SET_ITEM(taken, 0, PyLong_FromUnsignedLongLong(header->position));
        PyTuple_SET_ITEM(taken, 1, PyLong_FromLongLong(entry));
        PyTuple_SET_ITEM(taken, 2, PyLong_FromLong(deliveries));
        PyTuple_SET_ITEM(taken, 3, PyLong_FromLong(header->tag));
        PyTuple_SET_ITEM(taken, 4, PyLong_FromUnsignedLongLong(header->enqueued));
        PyTuple_SET_ITEM(taken, 5, payload);
        put = !PyErr_Occurred() && !PyList_Append(box, taken);
    } else
        Py_XDECREF(payload);
    Py_XDECREF(taken);
#if PY_VERSION_HEX < 0x030C0000
    if (collecting)
        PyGC_Enable();
#endif
    return put;
}

/* Under the head lock: put into the box what lies side by side in one window from `first` on, `limit` items at most, and lend it
 * unless it is done at once. How many, and where they end; none of them is taken yet. */
static Py_ssize_t collect(Ends *self, PyObject *box, long limit, int done, long reserved, uint64_t first, uint64_t *end)
{
    Word *words = self->words;
    Columns ledger;
    uint64_t position = first, entry = 0;
    Py_ssize_t before = PyList_GET_SIZE(box), count = 0;
    if (!done) {
        if (!columns(self, &ledger))
            return 0;
        entry = ledger.meta[LEDGER_END];
    }
    Header large;
    PyObject *large_payload = NULL;
    for (; count < limit && position < self->tail_seen && !large_payload; count++) {
        if (count) { /* what was found before it must stay in the buffer */
            uint64_t at = position - self->buffer_at;
            if (at + HEADER_SIZE > self->buffered ||
                at + record_size(((Header *)(self->buffer + at))->length) > self->buffered)
                break;
        }
        if (!done && entry >= ledger.capacity)
            break;
        if (!count)
            large_payload = large_record_at(self, position, &large);
        Header *header = large_payload ? &large : record_at(self, position);
        if (!header)
            break;
        size_t size = record_size(header->length);
        long deliveries = (header->deliveries + 1) | reserved;
        if (!put_into(box, header, done ? -1 : (long long)entry, deliveries, large_payload)) {
            PyErr_Clear(); /* the twin says so, if it finds no memory either */
            PyList_SetSlice(box, before, PyList_GET_SIZE(box), NULL);
            words[H_STATE] |= BUSY; /* has the next one derive anew what is half written */
            return 0;
        }
        if (!done) { /* as Ledger.append: an entry at or past the head does not count yet */
            words[self->lent_word] = 1;
            ledger.position[entry] = position;
            ledger.size[entry] = (uint32_t)(size >> 3);
            ledger.count[entry] = (uint16_t)deliveries;
            ledger.until[entry] = NEVER;
            ledger.owner[entry] = self->own_code;
            ledger.meta[LEDGER_END] = ++entry;
            words[LIVE] += 1;
            words[LIVE_BYTES] += size;
        }
        position += size;
    }
    *end = position;
    return count;
}

/* Under the head lock: take what was given back, as Returned._take_returned. It is older than everything at the head. How many;
 * none if there is more to it: delays, leases, a shutdown, a bound on deliveries. */
static Py_ssize_t take_returned(Ends *self, PyObject *box, long limit, int done, long reserved)
{
    Word *words = self->words;
    Columns ledger;
    if (!self->returns_plainly || words[NEXT_DUE] != NEVER || words[SHUTDOWN] || !columns(self, &ledger))
        return 0;
    Py_ssize_t count = 0;
    uint64_t entry = ledger.meta[LEDGER_HINT], end = ledger.meta[LEDGER_END];
    if (!self->returning)
        self->buffered = 0; /* what was read before it was lent may have changed since */
    self->returning = 1;
    for (; count < limit && words[RETURNED]; count++) {
        uint64_t look = entry + (1 << 12); /* Python searches faster */
        while (entry < end && entry < look && ledger.owner[entry] != RETURNED_CODE)
            entry++;
        if (entry >= end || entry == look)
            break;
        ledger.meta[LEDGER_HINT] = entry;
        uint64_t position = ledger.position[entry];
        long deliveries = ((ledger.count[entry] & MAX_COUNT) + 1) | reserved;
        if (self->tail_seen <= position)
            self->tail_seen = words[H_POS + (words[H_COMMIT] & 1)];
        if ((deliveries & MAX_COUNT) == 0 || (done && !strikes_plainly(self, &ledger, entry)))
            break;
        Header *header = record_at(self, position);
        if (!header)
            break;
        if (!put_into(box, header, done ? -1 : (long long)entry, deliveries, NULL)) {
            PyErr_Clear();
            break;
        }
        if (done) {
            int marked;
            Py_BEGIN_ALLOW_THREADS
            marked = mark(self, position - self->head_base + STATE_OFFSET, 1);
            if (marked) {
                strike_out(self, &ledger, entry);
                self->handed_out++;
            }
            Py_END_ALLOW_THREADS
            if (!marked) {
                PyList_SetSlice(box, PyList_GET_SIZE(box) - 1, PyList_GET_SIZE(box), NULL);
                break;
            }
        } else {
            words[self->lent_word] = 1;
            ledger.count[entry] = (uint16_t)deliveries;
            words[RETURNED] -= 1;
            ledger.owner[entry] = self->own_code;
        }
    }
    if (!words[RETURNED])
        words[H_STATE] &= ~(uint64_t)SPECIAL; /* as Control.settle_head_state: all is usual again */
    return count;
}

static PyObject *take(Ends *self, PyObject *box, long limit, int done, long reserved, int patient)
{
    Word *words = self->words;
    Py_ssize_t before = PyList_GET_SIZE(box), taken = 0;
again:
    if (!enter(self, HEAD_MUTEX, H_STATE, &self->calm, SPECIAL))
        return PyLong_FromLong(LEFT);
    if (words[H_STATE] & SPECIAL) {
        taken = take_returned(self, box, limit, done, reserved);
        if (taken == limit || words[H_STATE] & SPECIAL) {
            leave(self, HEAD_MUTEX);
            return taken ? answer(self, words[PUT_WAITERS] || words[JOIN_WAITERS], done) : PyLong_FromLong(LEFT);
        }
    }
    self->returning = 0;
    uint64_t first = words[H_POS + (words[H_COMMIT] & 1)], end;
    if (first >= self->tail_seen) {
        uint64_t seen;
        do {
            seen = observe(&words[T_COMMIT]);
            self->tail_seen = observe(&words[T_POS + (seen & 1)]);
        } while (observe(&words[T_COMMIT]) != seen);
    }
    int empty = first >= self->tail_seen && first - self->head_base < REWIND; /* else it is time for a rewind */
    Py_ssize_t found;
    while ((found = collect(self, box, limit - taken, done, reserved, first, &end))) {
        Py_ssize_t marked = found;
        PyThreadState *gil = done ? PyEval_SaveThread() : NULL;
        if (done)
            end = mark_done(self, first, end, &marked);
        if (marked) {
            uint64_t commit = words[H_COMMIT];
            words[H_POS + (~commit & 1)] = end;
            publish(&words[H_COMMIT], (commit + 2 * (uint64_t)marked) ^ 1); /* this store takes them */
        }
        taken += marked;
        self->handed_out += done ? (uint64_t)marked : 0; /* under the lock, as in HeadEnd.take */
        first = end;
        int last = marked < found || taken == limit || first >= self->tail_seen;
        if (last) /* before the GIL comes back: a thread that computes may keep that for milliseconds */
            leave(self, HEAD_MUTEX);
        if (gil)
            PyEval_RestoreThread(gil);
        if (marked < found) /* the disk refused; the twin says so when it comes for the rest */
            PyList_SetSlice(box, before + taken, PyList_GET_SIZE(box), NULL);
        if (last)
            break;
    }
    if (!found)
        leave(self, HEAD_MUTEX);
    if (taken)
        return answer(self, words[PUT_WAITERS] || words[JOIN_WAITERS] || first > words[H_NEXT], done);
    if (empty && patient && look_out(self)) {
        patient = 0;
        goto again;
    }
    return PyLong_FromLong(LEFT);
}

static PyObject *fast_take(Ends *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 5 || !PyList_CheckExact(args[0]) || unusable(self))
        return PyLong_FromLong(LEFT);
    long limit = PyLong_AsLong(args[1]), reserved = PyLong_AsLong(args[3]);
    int done = args[2] == Py_True;
    if (PyErr_Occurred() || (!done && !self->lends_plainly)) {
        PyErr_Clear(); /* more than anybody has */
        return PyLong_FromLong(LEFT);
    }
    return take(self, args[0], limit, done, reserved, args[4] == Py_True);
}
