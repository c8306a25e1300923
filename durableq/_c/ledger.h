/* The ledger of what is lent, as _leases lays it out. */

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
