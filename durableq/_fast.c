/* The compiled hot path: the usual put, get and ack, and nothing else.
 *
 * Each call below does one operation from lock to unlock exactly as its twin in Python does (`TailEnd.append`, `HeadEnd.take`,
 * `Settler.ack`: the reference, and the place where the order of stores is explained). Whatever is not usual, a shutdown, a
 * returned item, a delay, a damaged record, a batch of space to give back, a full disk, a dead holder, it leaves to them: it
 * answers 0, and has changed nothing that exists. So there is one implementation of every rule, and a second one of the
 * common case only, which a kill can cut at any instruction and an interrupt cannot cut at all.
 *
 * Stores into the mapped words go through `volatile` pointers: a killed process leaves the stores that it made, in the order
 * in which they are written here. Publishing stores are releases, so that other processors see them in that order too.
 *
 * The GIL is held except around system calls. Nobody waits for a lock with the GIL in hand for longer than a short spin.
 */
#define _GNU_SOURCE 1
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "_fast_crc32.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the file format is little-endian; without this module the package does the same in Python"
#endif

/* As in _state.py, _record.py, _leases.py and _reclaim.py; _compiled.py compares `LAYOUT` with them. */
enum {
    SHUTDOWN = 37, MAXSIZE = 38, T_COMMIT = 40, T_POS = 41, T_MARK = 43, T_STATE = 46, T_ROOM = 47,
    H_COMMIT = 48, H_POS = 49, H_STATE = 51, H_LIMIT = 52, H_NEXT = 55,
    LIVE = 56, LIVE_BYTES = 57, RETURNED = 58, DELAYED = 59, NEXT_DUE = 61, REGION = 62, UNPUNCHED = 63,
    GET_WAITERS = 72, GET_WORD = 73, PUT_WAITERS = 80, JOIN_WAITERS = 88,
    TAIL_MUTEX = 3840, HEAD_MUTEX = 3968, BUSY = 1, SPECIAL = 2,
    HEADER_SIZE = 48, HEAD_SIZE = 24, STATE_OFFSET = 4, READY = 0x0F, DONE = 0xF0,
    MIN_LOG2 = 12, CHUNK_LOG2 = 10, LEDGER_END = 0, LEDGER_HINT = 1, LEDGER_FIRST = 2,
    RETURNED_CODE = 0xFF7F, MAX_COUNT = 0x7FFF,
    WINDOW = 64 << 10, AHEAD = 64 << 10, BATCH = 1 << 20, REWIND = 1 << 20, BLOCK = 4096,
};
#define MAGIC 0x71D5A10Cu
#define NEVER ((1ull << 63) - 1)
#define LAYOUT                                                                                                            \
    {SHUTDOWN, MAXSIZE, T_COMMIT, T_POS, T_MARK, T_STATE, T_ROOM, H_COMMIT, H_POS, H_STATE, H_LIMIT, H_NEXT, LIVE,        \
     LIVE_BYTES, RETURNED, DELAYED, NEXT_DUE, REGION, UNPUNCHED, GET_WAITERS, GET_WORD, PUT_WAITERS, JOIN_WAITERS,        \
     TAIL_MUTEX, HEAD_MUTEX, BUSY, SPECIAL, HEADER_SIZE, HEAD_SIZE, STATE_OFFSET, READY, DONE, MIN_LOG2, CHUNK_LOG2,      \
     LEDGER_END, LEDGER_HINT, LEDGER_FIRST, RETURNED_CODE, MAX_COUNT, BATCH, REWIND, BLOCK, MAGIC}

/* Seconds and items: see `look_out`. */
#define LOOK_OUT 30e-6
#define LINGER 3e-6
#define STREAM_FOR 20e-6
enum { STREAM = 16, DIALOGUE = 100 };
#define MARKED (2ull << 20) /* bytes of the spool that are mapped at a time, for done marks */
enum { SPINS = 100, NAP = 20000 /* ns */, NAPS = 20, MOST_BUFFERED = 8 << 20, COPIED = 8 << 10 };
enum { LEFT = 0, DID = 1, TELL = 2 }; /* what a call answers; TELL: done, and somebody is to be told (`told`, `wrote`) */

typedef volatile uint64_t Word;

typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint8_t state, deliveries;
    uint16_t zero;
    uint64_t position, due;
    uint32_t length, sum;
    uint64_t enqueued;
    uint16_t tag, zero2;
    uint32_t check;
} Header;

typedef struct {
    PyObject_HEAD
    /* what Python assigns; see `Handle` */
    char unfit, enabled;
    double look_at;
    int64_t tail_calm, calm, ledger_region;
    uint64_t base, head_base, ledger_address, handed_out;
    /* set once by `_fast_bind` */
    Py_buffer map;
    Word *words;
    int fd, lends_plainly, returns_plainly; /* no leases; and no bound on deliveries */
    uint32_t salt;
    uint64_t dirty_word, lent_word;
    uint16_t own_code;
    /* read-ahead of the head: records in [buffer_at, buffer_at + buffered) */
    uint8_t *buffer;
    size_t capacity, buffered, last_size, last_length;
    uint64_t buffer_at, tail_seen;
    uint64_t shift; /* how far the last rebuild of the ledger moved its entries, most likely */
    int streaming; /* below zero: so many times more it is taken for a dialogue */
    /* where done marks are written: MARKED bytes of the spool from marks_at on */
    uint8_t *marks;
    uint64_t marks_at;
    unsigned marks_forks;
} Ends;

static uint8_t zeros[AHEAD];

static inline void publish(Word *word, uint64_t value) { __atomic_store_n((uint64_t *)word, value, __ATOMIC_RELEASE); }
static inline uint64_t observe(Word *word) { return __atomic_load_n((uint64_t *)word, __ATOMIC_ACQUIRE); }
static inline size_t record_size(size_t length) { return (HEADER_SIZE + 7 + length) & ~(size_t)7; }

/* As time.monotonic. */
static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static int unusable(Ends *self)
{
    return self->unfit || !self->enabled || seconds() > self->look_at;
}

/* Whether the lock is ours now, and all is as usual under it, but for the bits to `forgive`. `calm` is looked at under the lock: another thread may have closed
 * this handle while we waited, and its descriptors may be other files' by now. */
static int enter(Ends *self, int mutex, int state, const int64_t *calm, int64_t forgive)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)((char *)self->words + mutex);
    int code = EBUSY;
    for (int n = 0; n < SPINS && code == EBUSY; n++) {
        code = pthread_mutex_trylock(lock);
#if defined(__x86_64__)
        if (code == EBUSY)
            __builtin_ia32_pause();
#endif
    }
    if (code == EBUSY) {
        /* Its holder is not at work at this moment, or it would have left by now. Who sleeps on the lock itself makes each unlock
         * a system call, and is woken into a lock that is taken again; a nap costs nobody anything. */
        const struct timespec nap = {0, NAP};
        struct timespec limit;
        Py_BEGIN_ALLOW_THREADS
        for (int n = 0; n < NAPS && code == EBUSY; n++) {
            nanosleep(&nap, NULL);
            code = pthread_mutex_trylock(lock);
        }
        if (code == EBUSY) {
            clock_gettime(CLOCK_REALTIME, &limit);
            limit.tv_nsec += 20000000;
            limit.tv_sec += limit.tv_nsec / 1000000000;
            limit.tv_nsec %= 1000000000;
            code = pthread_mutex_timedlock(lock, &limit);
        }
        Py_END_ALLOW_THREADS
    }
    if (code == EOWNERDEAD) { /* as `HotLock._mend`: the sign before the mending */
        self->words[state] |= BUSY;
        pthread_mutex_consistent(lock);
        code = 0;
    }
    if (code)
        return 0;
    if (((int64_t)self->words[state] & ~forgive) == *calm && !self->unfit)
        return 1;
    pthread_mutex_unlock(lock);
    return 0;
}

static void leave(Ends *self, int mutex) { pthread_mutex_unlock((pthread_mutex_t *)((char *)self->words + mutex)); }

/* After a change: is there anybody to tell? */
static PyObject *answer(Ends *self, int tell)
{
    if (self->dirty_word && self->words[self->dirty_word] != 1)
        tell = 1;
    return PyLong_FromLong(tell ? TELL : DID);
}

/* -- put ------------------------------------------------------------------------------------------------------------ */

static void fill_header(Ends *self, uint8_t *to, const uint8_t *payload, size_t length, unsigned tag)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    Header header = {
        .magic = MAGIC, .state = READY, .length = (uint32_t)length, .sum = crc32_of(payload, length, 0),
        .enqueued = (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000, .tag = (uint16_t)tag};
    header.check = crc32_of((uint8_t *)&header + HEAD_SIZE, HEADER_SIZE - HEAD_SIZE - 4, self->salt);
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
    if (sleepers && (commit >> 1) - (words[H_COMMIT] >> 1) < sleepers) { /* else they are all awake: see _wakeup.py */
        words[GET_WORD] = (words[GET_WORD] + 1) & 0xFFFFFFFFu;
        syscall(SYS_futex, (void *)&words[GET_WORD], FUTEX_WAKE, (int)count, NULL, NULL, 0);
    }
    Py_END_ALLOW_THREADS
    if (written != (ssize_t)total)
        return PyLong_FromLong(LEFT); /* the twin tries again, and says what is wrong */
    return answer(self, end > words[T_MARK]);
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

/* -- the ledger, as `_leases.Ledger` lays it out --------------------------------------------------------------------- */

typedef struct {
    uint64_t capacity;
    Word *meta, *dead, *position, *until;
    volatile uint32_t *size;
    volatile uint16_t *owner, *count;
} Columns;

static int columns(Ends *self, Columns *ledger)
{
    if (!self->ledger_address || (int64_t)self->words[REGION] != self->ledger_region)
        return 0;
    uint64_t capacity = 1ull << (self->ledger_region & (BLOCK - 1)), chunks = capacity >> CHUNK_LOG2;
    ledger->capacity = capacity;
    ledger->meta = (Word *)(uintptr_t)self->ledger_address;
    ledger->dead = ledger->meta + 8 + chunks; /* behind the due column */
    ledger->position = ledger->dead + chunks;
    ledger->until = ledger->position + capacity;
    ledger->size = (volatile uint32_t *)(ledger->until + capacity);
    ledger->owner = (volatile uint16_t *)(ledger->size + capacity);
    ledger->count = ledger->owner + capacity;
    return 1;
}

/* As Ledger.find: the entry of a record, or -1. `hint` is where it was when it was lent; rebuilds may have moved it. */
static int64_t find(Ends *self, const Columns *ledger, uint64_t position, uint64_t hint)
{
    uint64_t end = ledger->meta[LEDGER_END];
    if (hint < end && ledger->position[hint] == position)
        return (int64_t)hint;
    uint64_t moved = hint - self->shift;
    if (moved < end && ledger->position[moved] == position)
        return (int64_t)moved;
    uint64_t low = 0, high = end;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (ledger->position[middle] < position)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == end || ledger->position[low] != position)
        return -1;
    self->shift = hint - low;
    return (int64_t)low;
}

/* Whether an entry can be struck out without more ado: no space is due, and the ledger stays where it is. */
static int strikes_plainly(Ends *self, const Columns *ledger, uint64_t entry)
{
    return self->words[UNPUNCHED] + ((uint64_t)ledger->size[entry] << 3) < BATCH &&
           (self->words[LIVE] > 1 || ledger->capacity <= 1u << (MIN_LOG2 + 2));
}

/* As Ledger.free, for an entry that is lent or was given back; its record has its done mark. */
static void strike_out(Ends *self, Columns *ledger, uint64_t entry)
{
    Word *words = self->words;
    uint64_t size = (uint64_t)ledger->size[entry] << 3;
    if (ledger->owner[entry] == RETURNED_CODE)
        words[RETURNED] -= 1;
    ledger->owner[entry] = 0;
    words[LIVE_BYTES] -= size;
    words[LIVE] -= 1;
    if (words[LIVE]) {
        ledger->dead[entry >> CHUNK_LOG2] += size;
        if (entry == ledger->meta[LEDGER_FIRST])
            ledger->meta[LEDGER_FIRST] = entry + 1;
    } else {
        ledger->meta[LEDGER_END] = ledger->meta[LEDGER_HINT] = ledger->meta[LEDGER_FIRST] = 0;
        ledger->dead[0] = 0;
    }
    words[UNPUNCHED] += size;
}

/* -- done marks ----------------------------------------------------------------------------------------------------- */

static int done_fd = -1; /* a file in memory whose first byte is DONE */
static unsigned forks;    /* how many there were between the first process and this one */

static void count_fork(void) { forks++; }

static void unmap_marks(Ends *self)
{
    if (self->marks && self->marks_forks == forks) /* a forked child has not inherited it, and may have something else there */
        munmap(self->marks, MARKED);
    self->marks = NULL;
}

/* Map the part of the spool that the offset lies in. Through a description of its own: a mapping keeps one alive, and with it
 * the locks that a handle has on the spool until it is closed. */
static void map_marks(Ends *self, uint64_t offset)
{
    char name[32];
    unmap_marks(self);
    snprintf(name, sizeof name, "/proc/self/fd/%d", self->fd);
    int fd = open(name, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    self->marks_at = offset & ~(MARKED - 1);
    void *at = mmap(NULL, MARKED, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)self->marks_at);
    close(fd);
    if (at == MAP_FAILED)
        return;
    madvise(at, MARKED, MADV_DONTFORK);
    self->marks = at;
    self->marks_forks = forks;
}

/* Write one done mark. Under the head lock and without the GIL: a page may have to be read, or waited for.
 *
 * A write to the file would wait for the producer that is writing to it at this moment, and it for us: the kernel has one lock
 * for all writes to a file, and taking turns at it costs both of them several times the write. A store into a mapped page needs
 * no lock, but is SIGBUS where the file system cannot take it (a full copy-on-write file system, a dead journal). So the kernel
 * is asked to do the store: a read from a file in memory into the mapped page, which answers EFAULT instead; then the write is
 * tried after all, for its error. The page is there: the record on it was just read. */
static int mark(Ends *self, uint64_t offset, int follow)
{
    const uint8_t done = DONE;
    if (follow && done_fd >= 0 && (!self->marks || offset - self->marks_at >= MARKED))
        map_marks(self, offset);
    if (self->marks && offset - self->marks_at < MARKED) {
        volatile uint8_t *at = self->marks + (offset - self->marks_at);
        if (pread(done_fd, (void *)at, 1, 0) == 1 && *at == DONE)
            return 1;
    }
    return pwrite(self->fd, &done, 1, (off_t)offset) == 1;
}

/* -- get ------------------------------------------------------------------------------------------------------------ */

static int plain(Ends *self, const Header *header, uint64_t position)
{
    return header->magic == MAGIC && header->state == READY && !header->due && header->position == position &&
           crc32_of((const uint8_t *)header + HEAD_SIZE, HEADER_SIZE - HEAD_SIZE - 4, self->salt) == header->check;
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

/* One item for the box, with its payload if that was read already; 0, and an error, if there is no memory for it. */
static int put_into(PyObject *box, Header *header, long long entry, long deliveries, PyObject *payload)
{
    PyObject *taken = PyTuple_New(6);
    if (!payload)
        payload = PyBytes_FromStringAndSize((char *)header + HEADER_SIZE, header->length);
    if (!taken || !payload) {
        Py_XDECREF(taken);
        Py_XDECREF(payload);
        return 0;
    }
    PyTuple_SET_ITEM(taken, 0, PyLong_FromUnsignedLongLong(header->position));
    PyTuple_SET_ITEM(taken, 1, PyLong_FromLongLong(entry));
    PyTuple_SET_ITEM(taken, 2, PyLong_FromLong(deliveries));
    PyTuple_SET_ITEM(taken, 3, PyLong_FromLong(header->tag));
    PyTuple_SET_ITEM(taken, 4, PyLong_FromUnsignedLongLong(header->enqueued));
    PyTuple_SET_ITEM(taken, 5, payload);
    int put = !PyErr_Occurred() && !PyList_Append(box, taken);
    Py_DECREF(taken);
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

/* Under the head lock: take what was given back, as HeadEnd._take_returned. It is older than everything at the head. How many;
 * none if there is more to it: delays, leases, a shutdown, a bound on deliveries. */
static Py_ssize_t take_returned(Ends *self, PyObject *box, long limit, int done, long reserved)
{
    Word *words = self->words;
    Columns ledger;
    if (!self->returns_plainly || words[NEXT_DUE] != NEVER || words[SHUTDOWN] || !columns(self, &ledger))
        return 0;
    Py_ssize_t count = 0;
    uint64_t entry = ledger.meta[LEDGER_HINT], end = ledger.meta[LEDGER_END];
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
            return taken ? answer(self, words[PUT_WAITERS] || words[JOIN_WAITERS]) : PyLong_FromLong(LEFT);
        }
    }
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
        return answer(self, words[PUT_WAITERS] || words[JOIN_WAITERS] || first > words[H_NEXT]);
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

/* -- ack ------------------------------------------------------------------------------------------------------------ */

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
    return marked ? answer(self, words[PUT_WAITERS] || words[JOIN_WAITERS]) : PyLong_FromLong(LEFT);
}

/* -- the type ------------------------------------------------------------------------------------------------------- */

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
    .tp_doc = "The compiled part of a handle; see the head of _fast.c.",
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
