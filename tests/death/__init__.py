"""Process death at every point: an operation is killed at each of its byte codes, and a survivor looks at what is left.

    python -m tests.death --all            every point of every operation, and many pairs (some minutes)
    python -m tests.death --stride 50      every fiftieth
    python -m tests.death --case put --at 117   one point, with the line at which it dies

The parts: `steps` counts byte codes and strikes at one of them, `cases` are the operations with what may be found after
them, `trial` kills and looks, `interrupts` raises KeyboardInterrupt instead of killing.

What processes share lies in files and shared mappings, and a killed process leaves exactly the stores and system calls
that it made. So a child that dies at a byte code and a parent that looks are the whole truth about that point.
"""
