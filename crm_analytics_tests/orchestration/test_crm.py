"""The CRM in Dagster: assets, checks, schedules; a broken guard turns exactly its own checks red."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import psycopg
import pytest

from crm_analytics.core.settings import Settings
from crm_analytics.crm.proof import attacks
from crm_analytics.crm.schema import manifest
from crm_analytics.demo.crm_activity import play
from crm_analytics.orchestration.crm import checks
from crm_analytics.orchestration.crm.assets import SEALS_KEY, crm_assets, crm_schema
from crm_analytics.orchestration.crm.automation import crm_jobs, crm_schedules, number_crm_changes
from crm_analytics.orchestration.crm.resources import CrmDatabase

Metadata = dict[str, Any]


@pytest.fixture(scope="module")
def url(new_database: Callable[..., str]) -> str:
    address = new_database("crm")
    play(address, months=1, seed=5)
    return address


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def definitions(url: str) -> dg.Definitions:
    return dg.Definitions(
        assets=crm_assets,
        asset_checks=checks.crm_checks,
        jobs=crm_jobs,
        schedules=crm_schedules,
        resources={"crm_database": CrmDatabase(Settings(crm_database_url=url))},
        executor=dg.in_process_executor,
    )


def run(job: str, url: str, instance: dg.DagsterInstance) -> dict[str, tuple[bool, Metadata]]:
    """Runs a job once; returns (passed, metadata) by check name."""
    result = definitions(url).resolve_job_def(job).execute_in_process(instance=instance)
    assert result.success
    return {
        evaluation.check_name: (evaluation.passed, {k: v.value for k, v in evaluation.metadata.items()})
        for evaluation in result.get_asset_check_evaluations()
    }


def red(evaluations: dict[str, tuple[bool, Metadata]]) -> set[str]:
    return {name for name, (passed, _) in evaluations.items() if not passed}


def test_everything_is_scheduled_and_runs_by_default() -> None:
    """Drift, invariants, attacks and seals each have a running schedule; a check could otherwise exist and never run."""
    crons = {schedule.job_name: schedule.cron_schedule for schedule in crm_schedules}
    assert set(crons) == {"crm_guards", "crm_seal", "crm_invariants", "crm_attacks"}
    assert crons["crm_guards"] == "*/5 * * * *"
    assert all(schedule.default_status == dg.DefaultScheduleStatus.RUNNING for schedule in crm_schedules)
    dg.Definitions.validate_loadable(definitions("postgresql://nowhere"))


def test_the_sensor_numbers_changes_and_tells_who_listens(new_database: Callable[..., str]) -> None:
    """Each tick numbers what is committed and notifies the channel, so that the change feed has it within seconds."""
    url = new_database("crm")
    database = CrmDatabase(Settings(crm_database_url=url))
    assert number_crm_changes.default_status == dg.DefaultSensorStatus.RUNNING
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("LISTEN crm_changes")
        for expected in (
            "1 change numbered, the last position is 1",
            "0 changes numbered, the last position is 1",
        ):
            answer = number_crm_changes(dg.build_sensor_context(), crm_database=database)
            assert isinstance(answer, dg.SkipReason)
            assert answer.skip_message == expected
        assert [n.payload for n in connection.notifies(timeout=5, stop_after=1)] == ["1"]
        assert [n.payload for n in connection.notifies(timeout=0.1)] == []


def test_the_sensor_leaves_the_numbering_to_a_long_seal(new_database: Callable[..., str]) -> None:
    """While a seal or an erasure numbers for longer than the sensor waits, the tick is skipped, not failed."""
    url = new_database("crm")
    database = CrmDatabase(Settings(crm_database_url=url), lock_timeout_seconds=1)
    with psycopg.connect(url) as seal:
        seal.execute("SELECT crm_private.seal_audit_safe()")
        answer = number_crm_changes(dg.build_sensor_context(), crm_database=database)
        assert isinstance(answer, dg.SkipReason)
        assert "the next tick looks again" in (answer.skip_message or "")
        seal.rollback()
    answer = number_crm_changes(dg.build_sensor_context(), crm_database=database)
    assert isinstance(answer, dg.SkipReason)
    assert (answer.skip_message or "").startswith("1 change numbered")


def test_materializing_the_schema_migrates(
    new_database: Callable[..., str], instance: dg.DagsterInstance
) -> None:
    """Materializing crm/schema migrates the database and records what it is now."""
    result = dg.materialize(
        [crm_schema],
        instance=instance,
        resources={"crm_database": CrmDatabase(Settings(crm_database_url=new_database()))},
    )
    [event] = result.asset_materializations_for_node("crm__schema")
    metadata: Metadata = {key: value.value for key, value in event.metadata.items()}
    assert metadata["version"] == metadata["applied_files"][-1][:4]
    assert metadata["manifest_hash"] == metadata["committed_manifest_hash"] == manifest.expected().sha256()


def test_all_is_green_on_a_sound_database(url: str, instance: dg.DagsterInstance) -> None:
    """All checks are green on a sound database; red must not be the normal color."""
    guards = run("crm_guards", url, instance)
    assert red(guards) == set()
    assert set(guards) == {
        checks.DRIFT,
        checks.WRITERS,
        *(checks.guard_check(name) for name in manifest.GUARDS),
    }
    rows = run("crm_invariants", url, instance)
    assert red(rows) == set()
    assert checks.PUBLISHED_HEAD in rows
    assert checks.invariant_check("seals_are_intact") in rows


BROKEN = {
    "triggers_orders": "ALTER TABLE public.orders DISABLE TRIGGER guard_rows",
    "functions": "ALTER FUNCTION public.advance_order_status_safe(uuid, text, uuid, text, text, integer) RESET search_path",
    "row_security": "DROP POLICY crm_rpc_all ON public.payments",
    "unique_indexes": "DROP INDEX public.users_email_folded_key",
    "constraints": "ALTER TABLE public.payments DROP CONSTRAINT payments_reference_key_key",
}


@pytest.mark.parametrize("guard", BROKEN)
def test_a_broken_guard_turns_exactly_its_checks_red_and_the_remedy_repairs_it(
    url: str, instance: dg.DagsterInstance, guard: str
) -> None:
    """A broken guard turns exactly its checks red, and the remedy in the metadata repairs it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(BROKEN[guard].encode())
        evaluations = run("crm_guards", url, instance)
        assert red(evaluations) == {checks.DRIFT, checks.guard_check(guard)}
        _, metadata = evaluations[checks.guard_check(guard)]
        assert metadata["differences"] == 1
        remedy = metadata["remedy"].removeprefix("```sql\n").removesuffix("\n```")
        connection.execute(remedy.encode())
    assert red(run("crm_guards", url, instance)) == set()


def test_a_grant_turns_the_writers_check_red(url: str, instance: dg.DagsterInstance) -> None:
    """A role that can write is named by a check of its own, not only as a difference of catalogs."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("GRANT UPDATE ON public.orders TO crm_app")
        evaluations = run("crm_guards", url, instance)
        connection.execute("REVOKE UPDATE ON public.orders FROM crm_app")
    assert red(evaluations) == {checks.DRIFT, checks.WRITERS, checks.guard_check("table_grants")}


def test_tampered_rows_turn_their_invariants_red(url: str, instance: dg.DagsterInstance) -> None:
    """A row changed by a superuser turns its invariant red, with the row and the column in the metadata."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "BEGIN; ALTER TABLE public.customers DISABLE TRIGGER USER; UPDATE public.customers SET full_name = 'Forged'"
            " WHERE id = (SELECT min(id::text)::uuid FROM public.customers); COMMIT"
        )
        evaluations = run("crm_invariants", url, instance)
        name = checks.invariant_check("rows_equal_their_newest_audit_image")
        assert red(evaluations) == {name}
        assert evaluations[name][1]["offenders"] == 1
        assert "full_name" in evaluations[name][1]["examples"][0]
        # Restored from the newest audit image, as the remedy says: past the guard, then the guard ALWAYS again.
        connection.execute(
            "BEGIN; UPDATE public.customers c SET full_name = a.payload -> 'row' ->> 'full_name' FROM public.audit_log a"
            " WHERE a.entity = 'customers' AND a.entity_id = c.id AND c.full_name = 'Forged';"
            " ALTER TABLE public.customers ENABLE ALWAYS TRIGGER guard_rows;"
            " ALTER TABLE public.customers ENABLE ALWAYS TRIGGER guard_truncate;"
            " ALTER TABLE public.customers ENABLE ALWAYS TRIGGER row_version;"
            " ALTER TABLE public.customers ENABLE ALWAYS TRIGGER claim_written_contacts;"
            " ALTER TABLE public.customers ENABLE ALWAYS TRIGGER audit_owner_write; COMMIT"
        )
    assert red(run("crm_invariants", url, instance)) == set()
    assert red(run("crm_guards", url, instance)) == set()


def test_a_rewritten_chain_does_not_match_the_published_head(
    new_database: Callable[..., str], instance: dg.DagsterInstance
) -> None:
    """An audit log rewritten together with all its seals no longer matches the head that Dagster has."""
    url = new_database("crm")
    play(url, months=1, seed=6)
    run("crm_seal", url, instance)
    event = instance.get_latest_materialization_event(SEALS_KEY)
    assert event is not None and event.asset_materialization is not None
    sealed: Any = event.asset_materialization.metadata["sealed_rows"].value
    assert sealed > 0
    assert red(run("crm_invariants", url, instance)) == set()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER TABLE public.audit_seals DISABLE TRIGGER USER")
        connection.execute("ALTER TABLE public.audit_log DISABLE TRIGGER USER")
        connection.execute("DELETE FROM public.audit_seals")
        connection.execute("UPDATE public.audit_log SET application_name = 'another one'")
        connection.execute("SELECT crm_private.seal_audit_safe()")
    # the hourly seal publishes nothing over the evidence
    scheduled = (
        definitions(url)
        .resolve_job_def("crm_seal")
        .execute_in_process(
            instance=instance, tags={"dagster/schedule_name": "crm_seal_schedule"}, raise_on_error=False
        )
    )
    assert not scheduled.success
    assert "is not in the chain" in str(scheduled.all_events)
    assert red(run("crm_invariants", url, instance)) == {checks.PUBLISHED_HEAD}
    # a person who knows what happened does
    run("crm_seal", url, instance)
    assert red(run("crm_invariants", url, instance)) == set()


def test_checks_that_cannot_run_fail_with_the_reason(
    instance: dg.DagsterInstance, new_database: Callable[..., str]
) -> None:
    """A database that is down or not migrated turns every check red, with the reason."""
    for job, url in (
        ("crm_guards", "postgresql://127.0.0.1:1/nowhere"),
        ("crm_invariants", "postgresql://127.0.0.1:1/nowhere"),
        ("crm_invariants", new_database()),
    ):
        evaluations = run(job, url, instance)
        assert red(evaluations) == set(evaluations)
        assert all(
            "Error" in metadata["could_not_run"] or ":" in metadata["could_not_run"]
            for _, metadata in evaluations.values()
        )


def test_every_attack_has_a_check_and_one_that_gets_through_turns_it_red(
    url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attack that is tried belongs to a check, and one that gets through turns it red."""

    def on_scratch_server(version: int, only: list[str]) -> list[attacks.Outcome]:
        return [
            attacks.Outcome(attacks.ATTACKS[name], name != "payout_before_money", "paid") for name in only
        ]

    monkeypatch.setattr(attacks, "run_on_scratch_server", on_scratch_server)
    evaluations = run("crm_attacks", url, instance)
    assert set(evaluations) == {checks.attack_check(a.family) for a in attacks.ATTACKS.values()}
    assert red(evaluations) == {checks.attack_check("payout_before_money")}
    assert evaluations[checks.attack_check("payout_before_money")][1]["got_through"] == [
        "payout_before_money: paid"
    ]
