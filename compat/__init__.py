"""The tests that CPython ships for its own queues, run against durableq, and real programs that are handed one of ours.

    python -m compat              this Python; needs durableq's dependencies, pytest and pytest-xdist
    python -m compat --all        every Python found, each in a virtual environment of its own; writes compat/README.md
    python -m compat --self-test  the same harness must fail on queues that are broken on purpose

Nothing of CPython is copied: the tests are imported from the `test` package of the running interpreter. `standins` puts
our classes where the tests look for the standard ones and counts how often one is built, because a test that passes
without building one proves nothing. `cpython` picks the tests, `mp` holds the classes that child processes must be able
to import, `clients*` and `signatures` are tests of our own, `run` runs one suite under one start method, `report` makes
the table, and `deviations` says which tests cannot pass, and why.
"""
