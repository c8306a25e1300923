/* put: records to the end of the file. The twin of TailEnd.append. */

static void fill_header(Ends *self, uint8_t *to, const uint8_t *payload, size_t length, unsigned tag)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    Header header = {
        .magic = MAGIC, .state = READY, .length = (uint32_t)length, .sum = crc32_of(payload, length, 0),
        .enqueued = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000, .tag = (uint16_t)tag};
    header.check = crc32_of((uint8_t *)&header + HEAD_SIZE, HEADER_SIZE - HEAD_SIZE - 4, self->salt);
    header.tie = (uint16_t)header.check;
    memcpy(to, &header, HEADER_SIZE);
}

/* Append `count` records that lie in the vector; the bytes of their positions are already counted. */
static PyObject *append(Ends *self, struct iovec *parts, int n_parts, uint8_t **headers, const size_t *sizes, size_t count)
{
    Word *words = self->words;
    size_t total = 0;
    for (size_t n = 0; n < count; n++)
        total += sizes[n];
    if (!enter(self, TAIL_MUTEX, T_STATE, &self->tail_calm, 0))
        return PyLong_FromLong(LEFT);
    uint64_t commit = words[T_COMMIT], flip = commit & 1, tail = words[T_POS + flip], end = tail + total;
    uint64_t most = words[MAXSIZE];
    if (most && (commit >> 1) - (words[H_COMMIT] >> 1) + words[RETURNED] + words[DELAYED] + count > most) {
        leave(self, TAIL_MUTEX);
        return PyLong_FromLong(LEFT);
    }
    uint64_t position = tail;
    for (size_t n = 0; n < count; n++) {
        memcpy(headers[n] + offsetof(Header, position), &position, 8);
        position += sizes[n];
    }
    uint64_t sleepers;
    ssize_t written;
    Py_BEGIN_ALLOW_THREADS
    if (n_parts == 1)
        written = pwrite(self->fd, parts[0].iov_base, parts[0].iov_len, (off_t)(tail - self->base));
    else
        written = pwritev(self->fd, parts, n_parts, (off_t)(tail - self->base));
    if (written == (ssize_t)total) {
        if (end > words[T_ROOM]) {
            ssize_t ahead = total < AHEAD ? pwrite(self->fd, zeros, AHEAD, (off_t)(end - self->base)) : 0;
            words[T_ROOM] = end + (uint64_t)(ahead > 0 ? ahead : 0);
        }
        words[T_POS + (flip ^ 1)] = end;
        publish(&words[T_COMMIT], (commit + 2 * count) ^ 1); /* this store publishes them */
    } else if (written > 0)
        words[T_STATE] |= BUSY; /* who has the tail next cuts it off; the twin may not come to that (an interrupt, a kill) */
    leave(self, TAIL_MUTEX);
    sleepers = written == (ssize_t)total ? words[GET_WAITERS] : 0; /* published first, looked for sleepers second */
    int64_t waiting = (int64_t)((commit >> 1) - (words[H_COMMIT] >> 1)); /* below zero: taken before we came to look */
    if (sleepers && waiting < (int64_t)sleepers) { /* else they are all awake: see _wakeup.py */
        words[GET_WORD] = (words[GET_WORD] + 1) & 0xFFFFFFFFu;
        syscall(SYS_futex, (void *)&words[GET_WORD], FUTEX_WAKE, (int)count, NULL, NULL, 0);
    }
    Py_END_ALLOW_THREADS
    if (written != (ssize_t)total)
        return PyLong_FromLong(LEFT); /* the twin tries again, and says what is wrong */
    return answer(self, end > words[T_MARK], 1);
}

static PyObject *fast_append(Ends *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !PyBytes_CheckExact(args[0]) || unusable(self))
        return PyLong_FromLong(LEFT);
    const uint8_t *payload = (const uint8_t *)PyBytes_AS_STRING(args[0]);
    size_t length = (size_t)PyBytes_GET_SIZE(args[0]), size = record_size(length);
    unsigned long tag = PyLong_AsUnsignedLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    if (length > 1u << 30)
        return PyLong_FromLong(LEFT);
    uint8_t record[HEADER_SIZE + COPIED + 8], *header = record;
    fill_header(self, record, payload, length, (unsigned)tag);
    struct iovec parts[3] = {{record, size}, {(void *)payload, length}, {zeros, size - HEADER_SIZE - length}};
    if (length <= COPIED) {
        memcpy(record + HEADER_SIZE, payload, length);
        memset(record + HEADER_SIZE + length, 0, size - HEADER_SIZE - length);
        return append(self, parts, 1, &header, &size, 1);
    }
    parts[0].iov_len = HEADER_SIZE; /* from here on a copy costs more than two more elements in a vector */
    return append(self, parts, parts[2].iov_len ? 3 : 2, &header, &size, 1);
}

static PyObject *fast_append_many(Ends *self, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !PyList_CheckExact(args[0]) || unusable(self))
        return PyLong_FromLong(LEFT);
    unsigned long tag = PyLong_AsUnsignedLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    size_t count = (size_t)PyList_GET_SIZE(args[0]), total = 0;
    for (size_t n = 0; n < count; n++) {
        PyObject *payload = PyList_GET_ITEM(args[0], n);
        if (!PyBytes_CheckExact(payload) || total > MOST_BUFFERED)
            return PyLong_FromLong(LEFT);
        total += record_size((size_t)PyBytes_GET_SIZE(payload));
    }
    if (!count || total > MOST_BUFFERED)
        return PyLong_FromLong(LEFT);
    uint8_t *records = PyMem_Calloc(1, total), **headers = PyMem_Malloc(count * sizeof *headers);
    size_t *sizes = PyMem_Malloc(count * sizeof *sizes);
    PyObject *result = NULL;
    if (records && headers && sizes) {
        uint8_t *at = records;
        for (size_t n = 0; n < count; n++) {
            PyObject *item = PyList_GET_ITEM(args[0], n);
            const uint8_t *payload = (const uint8_t *)PyBytes_AS_STRING(item);
            size_t length = (size_t)PyBytes_GET_SIZE(item);
            fill_header(self, at, payload, length, (unsigned)tag);
            memcpy(at + HEADER_SIZE, payload, length);
            headers[n] = at;
            at += sizes[n] = record_size(length);
        }
        struct iovec part = {records, total};
        result = append(self, &part, 1, headers, sizes, count);
    } else
        PyErr_NoMemory();
    PyMem_Free(records);
    PyMem_Free(headers);
    PyMem_Free(sizes);
    return result;
}
