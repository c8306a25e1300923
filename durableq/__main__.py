"""`python -m durableq`: the same as the `durableq` command."""

from __future__ import annotations

import sys

from durableq.cli import main

if __name__ == "__main__":
    sys.exit(main())
