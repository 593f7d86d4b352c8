"""Refuses roles that somebody else prepared on the server, and gives crm_app to the members that the settings name.

Roles belong to the whole server. Who makes `crm_rpc` beforehand administers it for good: PostgreSQL does not keep who
made a role, but it gives a maker who is no superuser the ADMIN option.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from crm_analytics.core.migrations import MigrationError
from crm_analytics.core.settings import Settings
from crm_analytics.crm.schema.allowed_extras import objection
from crm_analytics.crm.schema.catalog import collect


def refuse_strangers(connection: psycopg.Connection[Any], config: Settings) -> None:
    """Refuses a server where another login administers or holds the CRM's roles. Reads only.

    Raises:
        MigrationError: the message names each of them, with the SQL that takes the role away.
    """
    problems = [*_strangers(connection, config), *_missing_members(connection, config)]
    if problems:
        raise MigrationError(
            "the server's roles are not the migrating login's alone. Nothing was changed. Found:\n"
            + "\n".join(f"- {problem}" for problem in problems)
            + "\nAll CRM databases of a server have one owner; a database of another owner needs a server of its own."
        )


def _strangers(connection: psycopg.Connection[Any], config: Settings) -> Iterator[str]:
    found = collect(connection, {"member"}, by_login=True, config=config)
    for key, facts in found.objects.items():
        # what these roles may do elsewhere is for the drift check
        if facts["role"] in ("crm_rpc", "crm_app", "grafana_reader") and (reason := objection(key, facts)):
            how = "administers" if facts["admin"] else "is a member of"
            yield f"{facts['member']} {how} {facts['role']}: {reason}\n    {found.removals[key]}"


def _missing_members(connection: psycopg.Connection[Any], config: Settings) -> Iterator[str]:
    for (name,) in connection.execute(
        "SELECT n FROM unnest(%s::text[]) n WHERE to_regrole(quote_ident(n)) IS NULL",
        [list(config.crm_app_member_names)],
    ):
        yield f"CRM_APP_MEMBERS names {name}, a role that does not exist: create it, or take it off the list"


def grant_members(connection: psycopg.Connection[Any], config: Settings) -> None:
    """Gives crm_app to the roles that CRM_APP_MEMBERS names. Harmless when repeated."""
    for name in config.crm_app_member_names:
        has = "SELECT pg_has_role(%s, 'crm_app', 'USAGE') AND pg_has_role(%s, 'crm_app', 'MEMBER')"
        if connection.execute(has, [name, name]).fetchone() == (True,):
            continue
        try:
            connection.execute(sql.SQL("GRANT crm_app TO {}").format(sql.Identifier(name)))
        except (psycopg.errors.UniqueViolation, psycopg.errors.InternalError_):
            # another database of this server was migrated at the same moment
            if connection.execute(has, [name, name]).fetchone() != (True,):
                raise
