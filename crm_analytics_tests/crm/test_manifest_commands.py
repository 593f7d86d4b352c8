"""`crm-analytics migrate crm [--sql|--check]` and `crm-analytics crm …`: their output and exit codes."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from click.testing import CliRunner, Result

from crm_analytics.cli import crm, crm_schema
from crm_analytics.cli.main import main
from crm_analytics.core.migrations import migration_files


def test_migrate_check_and_sql_on_an_empty_database(new_database: Callable[..., str]) -> None:
    """--check tells a deployment what is pending, and --sql prints it for review; neither changes anything."""
    url, lines = new_database(), list[str]()
    names = [file.name for file in migration_files("crm")]
    assert crm_schema.migrate(url=url, check=True, echo=lines.append) == 1
    assert lines == [f"pending: {', '.join(names)}. Run: crm-analytics migrate crm"]
    lines.clear()
    assert crm_schema.migrate(url=url, sql=True, echo=lines.append) == 0
    assert [line for line in lines[0].splitlines() if line.startswith("-- 0") and line[3:] in names] == [
        f"-- {name}" for name in names
    ]
    lines.clear()
    assert crm_schema.migrate(url=url, echo=lines.append) == 0
    assert lines[-1] == f"crm is at {names[-1][:4]}"
    assert crm_schema.migrate(url=url, check=True, echo=lines.append) == 0
    assert lines[-1] == "the catalog equals the manifest"


def test_check_names_what_drifted_and_its_repair(new_database: Callable[..., str]) -> None:
    """--check names what drifted, with its repair; else only Dagster would find drift."""
    url, lines = new_database("crm"), list[str]()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE public.orders DISABLE TRIGGER guard_rows")
        connection.execute("GRANT UPDATE ON public.tasks TO crm_app")
    assert crm_schema.migrate(url=url, check=True, echo=lines.append) == 1
    text = "\n".join(lines)
    assert "trigger public.orders.guard_rows: enabled is D, expected A" in text
    assert "ENABLE ALWAYS TRIGGER guard_rows" in text
    assert "REVOKE UPDATE ON TABLE public.tasks FROM crm_app CASCADE;" in text
    assert "crm_app can UPDATE public.tasks" in text


def test_a_migration_that_ends_in_drift_fails_with_the_difference(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself exits with 1 and prints the difference and its repair; a deployment would go on otherwise."""
    url = new_database("crm")
    monkeypatch.setenv("CRM_DATABASE_URL", url)
    assert CliRunner().invoke(main, ["migrate", "crm"]).exit_code == 0
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE public.orders DISABLE TRIGGER guard_rows")
    done = CliRunner().invoke(main, ["migrate", "crm"])
    assert done.exit_code == 1
    printed = " ".join(done.output.split())
    assert printed.startswith("migrated, but drifted: ")
    assert "trigger public.orders.guard_rows: enabled is D, expected A" in printed
    assert "ENABLE ALWAYS TRIGGER guard_rows" in printed
    assert "Traceback" not in printed


def test_the_first_admin_is_created_once(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """create-admin works once; else a new CRM would have no admin, or every shell could add admins."""
    url = new_database("crm")
    monkeypatch.setenv("CRM_DATABASE_URL", url)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(crm.crm, arguments)

    made = run("create-admin", "Olga@Example.com", "--name", "Olga Owner")
    assert made.exit_code == 0, made.output
    again = run("create-admin", "second@example.com")
    assert again.exit_code == 1
    assert "olga@example.com" in again.output
    with psycopg.connect(url) as connection:
        assert connection.execute(
            "SELECT name, email, role::text, active FROM public.users WHERE name <> 'system'"
        ).fetchall() == [("Olga Owner", "olga@example.com", "admin", True)]
    assert run("play", "--months", "1").exit_code == 0
    invariants = run("invariants")
    assert invariants.exit_code == 0, invariants.output
    assert "BROKEN" not in invariants.output
    assert run("guards").exit_code == 0
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE public.customers DISABLE TRIGGER USER")
        connection.execute("UPDATE public.customers SET full_name = 'Forged'")
    assert run("guards").exit_code == 1
    broken = run("invariants")
    assert broken.exit_code == 1
    assert "BROKEN rows_equal_their_newest_audit_image" in broken.output


def test_an_adopted_admin_without_an_address_does_not_prevent_the_first_admin(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An admin without an address or identity does not count as one; else no user of an adopted CRM could ever log in."""
    url = new_database("crm")
    monkeypatch.setenv("CRM_DATABASE_URL", url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO public.users (name, role) VALUES ('Old Admin', 'admin')")
        connection.execute(
            "INSERT INTO public.users (name, email, role) VALUES ('Max', ' Max@Example.com', 'manager')"
        )
    for address, refusal in (
        ("not-an-email", "must be an e-mail address"),
        ("  ", "blank"),
        ("max@example.com", "belongs to Max (manager"),
    ):
        refused = CliRunner().invoke(crm.crm, ["create-admin", address])
        assert refused.exit_code == 1
        assert refusal in refused.output
        assert "Traceback" not in refused.output
    assert CliRunner().invoke(crm.crm, ["create-admin", " Olga@example.com "]).exit_code == 0
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(
            "SELECT public.resolve_crm_user('sso', 'o', 'olga@example.com') ->> 'role'"
        )
        assert found.fetchone() == ("admin",)
        # what docs/crm.md says about the addresses of adopted users
        connection.execute(
            "UPDATE public.users SET email = 'old@example.com' WHERE name = 'Old Admin' AND email IS NULL"
        )
        found = connection.execute("SELECT public.resolve_crm_user('sso', 'x', 'old@example.com') ->> 'name'")
        assert found.fetchone() == ("Old Admin",)
    again = CliRunner().invoke(crm.crm, ["create-admin", "third@example.com"])
    assert again.exit_code == 1
    assert "there is already an active admin: o" in again.output.lower()


@pytest.mark.parametrize("command", [["guards"], ["invariants"], ["create-admin", "a@example.com"], ["play"]])
def test_a_database_that_is_not_migrated_is_named(
    new_database: Callable[..., str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """A database that lacks migrations is answered with the command to run, not with a traceback."""
    monkeypatch.setenv("CRM_DATABASE_URL", new_database())
    done = CliRunner().invoke(main, ["crm", *command])
    assert done.exit_code == 1
    assert "run `crm-analytics migrate crm`" in " ".join(done.output.split())
