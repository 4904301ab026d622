"""``python -m pool``: see pool/cli."""

import sys

from pool.cli import main

if __name__ == "__main__":
    sys.exit(main())
