"""What Dagster has of one franchise: its months, and the prefix of every key and name (docs/decisions/franchises.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dagster as dg

from crm_analytics.analytics.ingest.storage.places import landing_of
from crm_analytics.core.settings import RESERVED, Settings
from crm_analytics.orchestration.analytics.resources import AnalyticsDatabase, LandingFolder
from crm_analytics.orchestration.partitions import months_of

#: Between a franchise and the rest of a name; no franchise's name has two underscores.
JOINT = "__"


@dataclass(frozen=True)
class Franchise:
    """A business with its own database, landing folder and months.

    The only business has no name, and nothing of it a prefix. Nor has what belongs to no franchise (the CRM, operation)
    where there are several, which common settings stand for.
    """

    settings: Settings

    @cached_property
    def months(self) -> dg.MonthlyPartitionsDefinition:
        """START_MONTH to the current month inclusive (month to date), in the business timezone."""
        return months_of(self.settings)

    @property
    def is_common(self) -> bool:
        """Whether this is what belongs to none of several franchises: it has no analytics database."""
        return not self.settings.franchise and bool(self.settings.franchise_names)

    def key(self, key: dg.AssetKey) -> dg.AssetKey:
        """Returns the franchise's key of an asset: north/raw/jobs for raw/jobs."""
        return dg.AssetKey([self.settings.franchise, *key.path]) if self.settings.franchise else key

    def name(self, name: str) -> str:
        """Returns the franchise's name of a job, schedule, sensor, step, group, pool or resource: north__refresh."""
        return f"{self.settings.franchise}{JOINT}{name}" if self.settings.franchise else name

    def has_key(self, key: dg.AssetKey) -> bool:
        """Returns whether an asset is the franchise's; where there is only one business, every asset is."""
        if self.settings.franchise:
            return key.path[0] == self.settings.franchise
        return not self.is_common or key.path[0] in RESERVED

    def has_name(self, name: str) -> bool:
        """Returns whether a name is the franchise's; where there is only one business, every name is."""
        if self.settings.franchise:
            return name.startswith(self.name(""))
        return not self.is_common or JOINT not in name

    def has_run(self, run: dg.DagsterRun) -> bool:
        """Returns whether a run is the franchise's: by its job, or by its assets if they were chosen in the UI."""
        checked = {check.asset_key for check in run.asset_check_selection or ()}
        chosen = {*(run.asset_selection or ()), *checked}
        return self.has_name(run.job_name) or any(map(self.has_key, chosen))

    @property
    def resource_keys(self) -> set[str]:
        """The keys of `resources`."""
        return set(self.resources)

    @cached_property
    def resources(self) -> Mapping[str, Any]:
        """The database and the landing folder, by their keys."""
        return {
            self.name("analytics"): AnalyticsDatabase(self.settings),
            self.name("landing"): LandingFolder(landing_of(self.settings)),
        }

    def analytics(self, context: Any) -> AnalyticsDatabase:
        """Returns the franchise's database, from the resources of a context."""
        found: AnalyticsDatabase = getattr(context.resources, self.name("analytics"))
        return found

    def landing(self, context: Any) -> LandingFolder:
        """Returns the franchise's landing folder, from the resources of a context."""
        found: LandingFolder = getattr(context.resources, self.name("landing"))
        return found
