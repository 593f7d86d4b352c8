"""A process that times one Dagster run of all assets and months, without its own startup."""

from __future__ import annotations

import json
import time

from rich.console import Console

from crm_analytics.cli.databases import migrate_both
from crm_analytics.cli.refresh import refresh_months
from crm_analytics.core.settings import settings
from crm_analytics.orchestration.instance import open_instance


def main() -> None:
    """Prints the run's seconds as JSON. Settings come from the environment."""
    config = settings()
    console = Console(stderr=True)
    migrate_both(config, console)
    # opening an instance creates Dagster's own tables
    with open_instance(config):
        pass
    start = time.perf_counter()
    done = refresh_months(config, None, None, console=console, accept_refused=True)
    assert done, "the run failed"
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
