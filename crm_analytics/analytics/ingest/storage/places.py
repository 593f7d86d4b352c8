"""Chooses what a landing folder is: the only place that knows all kinds of them."""

from __future__ import annotations

from pathlib import Path

from crm_analytics.analytics.ingest.storage.bucket import Bucket
from crm_analytics.analytics.ingest.storage.landing import Landing
from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.core.settings import Settings

#: A landing folder; a path means a folder on this machine.
Place = Landing | Path


def landing_at(place: Place) -> Landing:
    """Returns a landing folder as what it is."""
    return LocalFolder(place) if isinstance(place, Path) else place


def landing_of(config: Settings) -> Landing:
    """Returns the landing folder of the settings."""
    if config.landing_url is None:
        return LocalFolder(config.landing_dir)
    return Bucket(config.landing_url, config.object_storage, config.landing_patience)
