"""One Dagster run of all assets for all months, timed without the process's start. Settings come from the environment."""

from __future__ import annotations

import json
import os
import time

from rich.console import Console

from crm_analytics.cli.run_dagster import dagster_environment, migrate_both, refresh_months
from crm_analytics.core.settings import settings


def main() -> None:
    """Print the run's seconds as JSON."""
    config = settings()
    console = Console(stderr=True)
    migrate_both(config, console)
    os.environ.update(dagster_environment(config))
    import dagster as dg

    import crm_analytics.definitions

    assert crm_analytics.definitions.defs
    with dg.DagsterInstance.get():  # makes Dagster's own tables
        pass
    start = time.perf_counter()
    done = refresh_months(config, None, None, console=console, accept_refused=True)
    assert done, "the run failed"
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
