"""``python -m pool``: see pool/cli."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Python has put the current folder first. A file there that is called like a module that we need must not be
        # taken for it: the folder comes last, until the user's module is wanted.
        sys.path.append(sys.path.pop(0))
    from pool.cli import main

    sys.exit(main())
