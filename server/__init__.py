"""The server of a federation: round loop, strategy, aggregation, evaluation, report."""

import signal
import sys

if sys.argv[:1] == [
    "-m"
]:  # `python -m server`: Ctrl-C while libraries are imported ends in silence, in no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)
