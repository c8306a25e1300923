"""Power cuts, simulated and real, against the guarantees of durableq.

    recorder   every write, truncate, punch, collapse and sync of a spool, and what its users were promised, as one log
    disk       the states in which a disk may be found when the power fails at some point of such a log
    workload   queues at work for the recorder: one process with several handles, or several processes
    judge      opens a spool as a cut left it and holds what comes out against what was promised
    real       the same questions to ext4, xfs and btrfs on loop devices

`python -m tests.powercut --states 2000` runs the simulation, `--real 100` cuts on each file system (as root).
"""
