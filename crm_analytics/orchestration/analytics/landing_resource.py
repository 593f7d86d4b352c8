"""The landing folder as a Dagster resource."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from crm_analytics.core.settings import settings


class LandingFolder(dg.ConfigurableResource[Any]):
    """The folder that exports are dropped into; LANDING_DIR unless `folder` is given."""

    folder: str = ""

    def path(self) -> Path:
        """The folder, absolute. It need not exist yet."""
        return Path(self.folder).resolve() if self.folder else settings().landing_dir
