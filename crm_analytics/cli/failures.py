"""Prints the failures that people can do something about: a wrong setting, a missing migration, a database that is down."""

from __future__ import annotations

import psycopg
from pydantic import ValidationError
from rich.markup import escape

from crm_analytics.analytics.connectors.errors import ConnectorError
from crm_analytics.analytics.ingest.storage.landing import LandingUnavailable
from crm_analytics.analytics.lake.errors import LakeError
from crm_analytics.cli.terminal import errors
from crm_analytics.core import locks, migrations
from crm_analytics.core.settings import NoFranchise, Settings

#: Settings whose values aren't quoted: addresses that may have a password, and what is a secret by its type.
SECRET = (
    "ANALYTICS_DATABASE_URL", "CRM_DATABASE_URL", "DAGSTER_POSTGRES_URL", "ADMIN_DATABASE_URL", "LAKE_CATALOG_URL",
    "ALERT_WEBHOOK_URL", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "LANDING_URL",
    *(name.upper() for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)),
)  # fmt: skip
#: What the line begins with; the first kind that fits is the error's.
KINDS = {
    NoFranchise: "which franchise?",
    migrations.NotMigrated: "not migrated",
    migrations.DriftError: "migrated, but drifted",
    migrations.MigrationError: "migration refused",
    LakeError: "the lake",
    locks.LockHeld: "busy",
    ConnectorError: "not pulled",
    psycopg.errors.LockNotAvailable: "busy",
    psycopg.errors.QueryCanceled: "took too long",
    psycopg.OperationalError: "no connection to the database",
    psycopg.Error: "the database refused",
    LandingUnavailable: "the landing folder",
}


def print_expected(error: Exception) -> bool:
    """Prints an expected failure as a readable line on stderr; returns whether it was one."""
    if isinstance(error, ValidationError):
        _print_settings(error)
        return True
    label = next((label for kind, label in KINDS.items() if isinstance(error, kind)), None)
    if label:
        errors.print(f"[red]{label}[/]: {escape(str(error))}", highlight=False)
    return label is not None


def _print_settings(error: ValidationError) -> None:
    for problem in error.errors():
        # a default that is made of another setting, which is the one that is wrong
        if problem["type"] == "default_factory_not_called":
            continue
        name = "_".join(str(part) for part in problem["loc"]).upper()
        # what concerns several settings has all of them as its input; a franchise's own has its name before it
        is_shown = name and not name.endswith(SECRET) and problem["input"] is not None
        found = f" (found {problem['input']!r})" if is_shown else ""
        text = problem["msg"].removeprefix("Value error, ")
        errors.print(f"[red]{name or 'settings'}[/]: {escape(text + found)}", highlight=False)
