"""The terminal that commands print to."""

from __future__ import annotations

import sys

from rich.console import Console

PIPED_WIDTH = 120  #: a log file has no width of its own
console = Console() if sys.stdout.isatty() else Console(width=PIPED_WIDTH)
errors = Console(stderr=True)
