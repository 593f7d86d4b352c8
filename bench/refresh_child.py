"""A process that times one Dagster run of all assets and months, without its own startup."""

from __future__ import annotations

import json
import os
import time

from rich.console import Console

from crm_analytics.cli.run_dagster import dagster_environment, migrate_both, refresh_months
from crm_analytics.core.settings import settings


def main() -> None:
    """Prints the run's seconds as JSON. Settings come from the environment."""
    config = settings()
    console = Console(stderr=True)
    migrate_both(config, console)
    os.environ.update(dagster_environment(config))
    import dagster as dg

    import crm_analytics.definitions

    assert crm_analytics.definitions.defs
    # opening an instance creates Dagster's own tables
    with dg.DagsterInstance.get():
        pass
    start = time.perf_counter()
    done = refresh_months(config, None, None, console=console, accept_refused=True)
    assert done, "the run failed"
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
