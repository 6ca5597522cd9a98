"""Run the command line with `python -m doxastic`."""

import sys

from doxastic.cli import main

if __name__ == "__main__":
    sys.exit(main())
