/* Reading records: a window ahead of the head, and large ones to where they are wanted. */

static int plain(Ends *self, const Header *header, uint64_t position)
{
    return header->magic == MAGIC && header->state == READY && !header->due && header->position == position &&
           crc32_of((const uint8_t *)header + HEAD_SIZE, HEADER_SIZE - HEAD_SIZE - 4, self->salt) == header->check &&
           header->tie == (header->check & 0xFFFF);
}

/* Have the bytes of the record at a position in the buffer; its header there, or NULL if it is not one to deliver plainly,
 * or goes past what the last checkpoint on the disk allows. */
static Header *record_at(Ends *self, uint64_t position)
{
    for (int tries = 0; tries < 3; tries++) { /* a window, then all of a record that is longer */
        uint64_t at = position - self->buffer_at;
        size_t wanted = WINDOW > self->last_size ? WINDOW : self->last_size;
        if (position >= self->buffer_at && at + HEADER_SIZE <= self->buffered) {
            Header *header = (Header *)(self->buffer + at);
            if (!plain(self, header, position))
                return NULL;
            size_t size = record_size(header->length);
            if (position + size > self->words[H_LIMIT])
                return NULL;
            if (at + size <= self->buffered) {
                self->last_size = size;
                self->last_length = header->length;
                return crc32_of((uint8_t *)header + HEADER_SIZE, header->length, 0) == header->sum ? header : NULL;
            }
            wanted = wanted > size ? wanted : size;
        }
        if (tries == 2 || wanted > MOST_BUFFERED)
            break;
        if (wanted > self->tail_seen - position)
            wanted = self->tail_seen - position;
        if (wanted > self->capacity) {
            uint8_t *larger = PyMem_Realloc(self->buffer, wanted);
            if (!larger)
                break;
            self->buffer = larger;
            self->capacity = wanted;
        }
        ssize_t got;
        self->buffered = 0;
        Py_BEGIN_ALLOW_THREADS
        got = pread(self->fd, self->buffer, wanted, (off_t)(position - self->head_base));
        Py_END_ALLOW_THREADS
        self->buffer_at = position;
        self->buffered = got > 0 ? (size_t)got : 0;
    }
    return NULL;
}

/* A record that is as large as the last one, read to where it is wanted; the payload, or NULL: then look at it as any other. */
static PyObject *large_record_at(Ends *self, uint64_t position, Header *header)
{
    size_t length = self->last_length;
    if (length < WINDOW || position + record_size(length) > self->tail_seen ||
        position + record_size(length) > self->words[H_LIMIT])
        return NULL;
    PyObject *payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (!payload) {
        PyErr_Clear();
        return NULL;
    }
    uint8_t *to = (uint8_t *)PyBytes_AS_STRING(payload);
    struct iovec parts[2] = {{header, HEADER_SIZE}, {to, length}};
    int good;
    Py_BEGIN_ALLOW_THREADS
    good = preadv(self->fd, parts, 2, (off_t)(position - self->head_base)) == (ssize_t)(HEADER_SIZE + length) &&
           plain(self, header, position) && header->length == length && crc32_of(to, length, 0) == header->sum;
    Py_END_ALLOW_THREADS
    if (good)
        return payload;
    Py_DECREF(payload);
    self->last_length = 0;
    return NULL;
}
