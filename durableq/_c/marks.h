/* Done marks. */

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
