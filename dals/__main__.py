"""`python -m dals` is the command `dals`."""

import sys

from dals.cli import main

if __name__ == "__main__":
    sys.exit(main())
