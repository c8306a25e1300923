"""A real job through `durableq work`, and death at random: nothing may be lost.

    python -m tests.pool_run                   20,000 items, 4 workers, 3 restarts
    python -m tests.pool_run --items 3000

The files of the standard library, several times over, are queued and hashed by a pool of workers; one item makes its worker
segfault each time, one hangs. Workers get SIGKILL at random, and so does the pool itself, three times; each time it is
started again as it was. In the end each item must be done, with the right hash in the results queue, or among the dead
letters; the two bad items must be dead letters with the story of their deaths beside them, and no process may be left.

`job` is what the workers do, `governor` starts and kills, `account` is what must hold in the end.
"""
