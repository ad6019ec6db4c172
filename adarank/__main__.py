"""python -m adarank: the same as the `adarank` command."""

import sys

from adarank.cli import main

if __name__ == "__main__":
    sys.exit(main())
