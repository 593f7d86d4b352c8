"""The drift check in words: how a database differs from the manifest, who else can write, and the SQL that repairs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg

from crm_analytics.core.settings import Settings
from crm_analytics.crm.schema import manifest
from crm_analytics.crm.schema.repairs import writer_repair


@dataclass(frozen=True)
class Drift:
    """A sentence with its repair for each difference, in the order in which to run the repairs; and what is allowed."""

    problems: tuple[str, ...]
    allowed_extras: tuple[str, ...]


def drift(connection: psycopg.Connection[Any], config: Settings | None = None) -> Drift:
    """Compares the connected database with the committed manifest, privileges included. Reads only.

    Args:
        config: the settings that name the members of crm_app; the environment's by default.
    """
    comparison = manifest.compare(connection, config=config)
    problems = [f"{difference.problem}\n{difference.repair}\n" for difference in comparison.differences]
    for writer in manifest.unexpected_writers(connection):
        can = f"{writer['role_name']} can {', '.join(writer['privileges'])} {writer['table_name']}"
        problems.append(f"{can}\n{writer_repair(writer)}\n")
    return Drift(tuple(problems), comparison.allowed_extras)
