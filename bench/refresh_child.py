"""One Dagster run of all assets for all months, timed without the process's start. Settings come from the environment."""

from __future__ import annotations

import json
import time

from rich.console import Console

import crm_analytics.definitions  # noqa: F401  its import is not timed
from crm_analytics.cli.refresh import migrate_both, refresh_months
from crm_analytics.core.settings import settings
from crm_analytics.orchestration.instance import open_instance


def main() -> None:
    """Print the run's seconds as JSON."""
    config = settings()
    console = Console(stderr=True)
    migrate_both(config, console)
    with open_instance(config):  # makes Dagster's own tables
        pass
    start = time.perf_counter()
    done = refresh_months(config, None, None, console=console, accept_refused=True)
    assert done, "the run failed"
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
