"""Runs the command as ``python -m siteseg``."""

import sys

from siteseg.command import siteseg_main

if __name__ == "__main__":
    sys.exit(siteseg_main())
