/* What a handle is to the compiled calls, and how they step into a lock. Numbers as in the Python modules. */

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

#include "crc32.h"

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
#define MARKED (16ull << 20) /* bytes of the spool that are mapped at a time, for done marks */
enum { SPINS = 100, NAP = 20000 /* ns */, NAPS = 20, MOST_BUFFERED = 8 << 20, COPIED = 8 << 10 };
enum { LEFT = 0, DID = 1, TELL = 2 }; /* what a call answers; TELL: done, and somebody is to be told (`told`, `wrote`) */

typedef volatile uint64_t Word;

typedef struct __attribute__((packed)) {
    uint32_t magic;
    uint8_t state, deliveries;
    uint16_t tie;
    uint64_t position, due;
    uint32_t length, sum;
    uint64_t enqueued;
    uint16_t tag, zero;
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
    int returning; /* the buffer was filled to take what was given back */
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

/* Whether the lock is ours now, and all is as usual under it, but for the bits to `forgive`. `calm` is looked at under the lock:
 * another thread may have closed this handle while we waited, and its descriptors may be other files' by now. */
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

/* After a change: is there anybody to tell? `wrote`: the spool was changed, of which a handle that is in sync with the disk has to
 * hear. To lend changes nothing there. */
static PyObject *answer(Ends *self, int tell, int wrote)
{
    if (wrote && self->dirty_word && self->words[self->dirty_word] != 1)
        tell = 1;
    return PyLong_FromLong(tell ? TELL : DID);
}
