"""``python -m latentwire``: the command-line interface."""

import sys

from latentwire._cli import main

if __name__ == "__main__":
    sys.exit(main())
