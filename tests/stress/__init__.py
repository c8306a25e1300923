"""Many processes on one queue, SIGKILL at random, and an account of every item afterwards.

    python -m tests.stress --minutes 10 --kills 500

`plans` says what the rounds look like, `worker` is what gets killed, `log` is how a worker says what it did, in a file
of its own and before anybody asks, `account` reads those files and finds what was lost or done twice, `governor`
starts, kills and restarts; `part` is a smaller governor, several of which share one queue. Nothing here believes what the
queue says about itself: only what the workers wrote counts.
"""
