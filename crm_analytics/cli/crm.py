"""The `crm-analytics crm …` commands; as in `main`, each imports what it needs when it runs."""

from __future__ import annotations

import sys
from typing import TextIO

import click


@click.group()
def crm() -> None:
    """Set up the CRM, and prove that its guards hold."""


@crm.command("create-admin")
@click.argument("email")
@click.option("--name", help="The person's name; the part of the address before @ by default.")
def create_admin(email: str, name: str | None) -> None:
    """Create the first admin.

    Runs as the migrating login; later users come from create_user_safe. Refused if there is already an active admin who can be recognized, by e-mail address or mapped identity.
    """
    import psycopg

    from crm_analytics.core.database import connect
    from crm_analytics.core.migrations import require_migrated

    require_migrated("crm")
    with connect("crm") as connection:
        # Only one first admin, even if this runs several times at once.
        connection.execute("LOCK TABLE public.users IN SHARE ROW EXCLUSIVE MODE")
        admin = connection.execute(
            """
            SELECT u.name, u.email, u.id FROM public.users u
            WHERE u.active AND u.role = 'admin' AND (u.email IS NOT NULL
                OR EXISTS (SELECT FROM public.user_identity_map m WHERE m.crm_user_id = u.id))
            LIMIT 1
            """
        ).fetchone()
        if admin:
            raise click.ClickException(
                f"there is already an active admin: {admin[0]} ({admin[1] or 'no address'}, {admin[2]}). "
                f"Let them call create_user_safe for {email}."
            )
        try:
            row = connection.execute("SELECT crm_private.email('EMAIL', %s)", [email]).fetchone()
        except psycopg.Error as error:
            # PT422, by the same rule as in create_user_safe.
            raise click.ClickException(f"{error.diag.message_primary}. {error.diag.message_hint}") from error
        address = row[0] if row else None
        if address is None:
            raise click.ClickException("EMAIL is blank: give the admin's e-mail address.")
        holder = connection.execute(
            "SELECT name, role::text, id FROM public.users WHERE crm_private.folded_email(email) = %s",
            [address],
        ).fetchone()
        if holder:
            raise click.ClickException(
                f"{address} already belongs to {holder[0]} ({holder[1]}, {holder[2]}): give another address, "
                "or take it from them as the tables' owner: "
                f"UPDATE public.users SET email = NULL WHERE id = '{holder[2]}';"
            )
        row = connection.execute(
            "INSERT INTO public.users (name, email, role) VALUES (%s, %s, 'admin') RETURNING id",
            [name or address.split("@")[0], address],
        ).fetchone()
        assert row is not None
        click.echo(f"admin {address} has id {row[0]}")


@crm.command("guards")
def guards() -> None:
    """Compare the catalog with the manifest.

    Exit code 1 if they differ (drift); prints each difference with the SQL that repairs it.
    """
    from crm_analytics.cli.crm_schema import report_drift
    from crm_analytics.core.database import database_url
    from crm_analytics.core.migrations import require_migrated

    require_migrated("crm")
    sys.exit(report_drift(database_url("crm"), click.echo))


@crm.command("invariants")
def check_invariants() -> None:
    """Compare the rows with the rules (invariants), read-only.

    Exit code 1 if an invariant is broken.
    """
    from crm_analytics.core.database import connect
    from crm_analytics.core.migrations import require_migrated
    from crm_analytics.core.wording import counted
    from crm_analytics.crm.proof import invariants

    require_migrated("crm")
    broken = 0
    with connect("crm", autocommit=True) as connection:
        for name, result in invariants.check(connection).items():
            click.echo(f"{'ok    ' if result.holds else 'BROKEN'} {name}: {result.invariant.rule}")
            for example in result.examples:
                click.echo(f"         {example}")
            if not result.holds:
                broken += 1
                click.echo(f"       {counted(result.offenders, 'row')}. {result.invariant.remedy}")
    sys.exit(1 if broken else 0)


@crm.command("seal")
def seal() -> None:
    """Number and seal the audit log, and print what to keep elsewhere.

    That is the head of the chain and the register of erasures, as JSON. The job crm_seal does the same each hour, and keeps it in Dagster's database.
    """
    from crm_analytics.core.database import connect
    from crm_analytics.core.migrations import require_migrated
    from crm_analytics.crm.proof import audit_seals
    from crm_analytics.crm.proof.restored import published

    require_migrated("crm")
    with connect("crm", autocommit=True) as connection:
        audit_seals.seal(connection)
        click.echo(published(connection).to_json())


@crm.command("verify-restore")
@click.option(
    "--published",
    "file",
    type=click.File(),
    help="What `crm seal` printed last; by default what Dagster's database has.",
)
@click.option("--repeat-erasures", is_flag=True, help="First erase again whom the restore brought back.")
def verify_restore(file: TextIO | None, repeat_erasures: bool) -> None:
    """Verify a restored CRM: catalog, invariants, seals, positions, erasures.

    Compares with what was published last. Reads only, except with --repeat-erasures. Exit code 1 if anything is amiss.
    """
    from crm_analytics.core.database import connect
    from crm_analytics.core.migrations import require_migrated
    from crm_analytics.core.settings import settings
    from crm_analytics.crm.proof import restored

    require_migrated("crm")
    elsewhere: restored.Published | None
    if file is not None:
        try:
            elsewhere = restored.Published.from_json(file.read())
        except ValueError as error:
            raise click.ClickException(f"{file.name}: {error}") from error
    else:
        from crm_analytics.cli.databases import require_storage
        from crm_analytics.orchestration.crm.assets import last_published
        from crm_analytics.orchestration.instance import open_instance

        require_storage(settings())
        with open_instance(settings()) as instance:
            elsewhere = last_published(instance)
    amiss = False
    with connect("crm", autocommit=True) as connection:
        if repeat_erasures and elsewhere is not None:
            amiss = not restored.repeat_erasures(connection, elsewhere, click.echo)
        for finding in restored.verify(connection, elsewhere):
            amiss = amiss or bool(finding.problems)
            click.echo(f"{'AMISS ' if finding.problems else 'ok    '} {finding.what}: ", nl=False)
            click.echo("\n       ".join(finding.problems) or finding.summary)
    sys.exit(1 if amiss else 0)


@crm.command("attacks")
def try_attacks() -> None:
    """Try every attack on a throwaway server.

    The server runs on this machine. Exit code 1 if an attack gets through.
    """
    from crm_analytics.core.settings import settings
    from crm_analytics.crm.proof import attacks

    outcomes = attacks.run_on_scratch_server(settings().embedded_postgres_version)
    for outcome in outcomes:
        click.echo(
            f"{'held  ' if outcome.held else 'BREACH'} {outcome.attack.name} {outcome.detail}".rstrip()
        )
    sys.exit(0 if all(outcome.held for outcome in outcomes) else 1)


@crm.command("play")
@click.option(
    "--months", default=3, show_default=True, type=click.IntRange(1, 24), help="Months of business."
)
@click.option("--seed", default=1, show_default=True, help="Another seed, another business.")
def play(months: int, seed: int) -> None:
    """Play months of an invented business through the RPCs.

    For demos only: it writes real rows.
    """
    from crm_analytics.core.database import database_url
    from crm_analytics.core.migrations import require_migrated
    from crm_analytics.demo import crm_activity

    require_migrated("crm")
    played = crm_activity.play(database_url("crm"), months=months, seed=seed, report=click.echo)
    click.echo(played.text())


@crm.command("manifest")
def write_manifest() -> None:
    """Write the committed manifests; needed after a new migration.

    They are in crm_analytics/crm/schema, and describe a scratch database that runs every migration.
    """
    from crm_analytics.core.settings import settings
    from crm_analytics.crm.migrating.scratch_database import scratch_database
    from crm_analytics.crm.schema import manifest

    with scratch_database(settings().embedded_postgres_version) as connection:
        for path, written in manifest.write_manifests(connection).items():
            click.echo(f"{path.name}: {len(written.objects)} objects, {written.sha256()}")


@crm.command("reference")
def write_reference() -> None:
    """Write docs/crm-rpc.md and the typed client.

    Needed after a change of the RPCs; reads them from a scratch database.
    """
    from crm_analytics.core.settings import PROJECT_DIR, settings
    from crm_analytics.crm import generate
    from crm_analytics.crm.migrating.scratch_database import scratch_database

    with scratch_database(settings().embedded_postgres_version) as connection:
        written = generate.write(connection)
    click.echo("\n".join(str(path.relative_to(PROJECT_DIR)) for path in written))
