"""A process that loads one source (arguments: URL, landing folder, source, force), so that its memory can be measured."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from zoneinfo import ZoneInfo

# a development tool, which pyarrow imports where it finds it: no part of what a load costs where there is none
import pandas  # noqa: F401

from crm_analytics.analytics.ingest.loading.load import load_source


def main(url: str, landing: str, source: str, force: str) -> None:
    """Prints seconds, CPU seconds, peak memory in MB, and the files' statuses and counts as JSON."""
    start, cpu_before = time.perf_counter(), time.process_time()
    result = load_source(
        url, Path(landing), source, timezone=ZoneInfo("America/New_York"), force=force == "True"
    )
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu_before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    statuses = [file.status for file in result.files]
    counts = vars(result.totals)
    print(
        json.dumps({"seconds": seconds, "cpu": cpu, "peak_mb": peak, "statuses": statuses, "counts": counts})
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
