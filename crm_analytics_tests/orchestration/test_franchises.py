"""Several franchises on one real instance: their keys, names, months, runs, checks and alerts are apart."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from crm_analytics.analytics.ingest.storage.local_folder import LocalFolder
from crm_analytics.core.settings import Settings
from crm_analytics.definitions import build_defs
from crm_analytics.orchestration.analytics.franchise import Franchise
from crm_analytics.orchestration.analytics.metric_assets import DAILY, MONTHLY
from crm_analytics.orchestration.instance import open_instance
from crm_analytics.orchestration.partitions import range_tags
from crm_analytics_tests.orchestration.conftest import JOBS_HEADER, job_row
from crm_analytics_tests.orchestration.webhook import Webhook

OCTOBER = date(2024, 10, 1)


@dataclass(frozen=True)
class Names:
    """All names of some definitions, by which Dagster tells things apart in an instance."""

    assets: frozenset[str]
    checks: frozenset[str]
    jobs: frozenset[str]
    automation: frozenset[str]
    steps: frozenset[str]
    pools: frozenset[str]
    groups: frozenset[str]

    @classmethod
    def of(cls, defs: dg.Definitions) -> Names:
        graph, repository = defs.resolve_asset_graph(), defs.get_repository_def()
        nodes = list(graph.asset_nodes)
        return cls(
            frozenset(node.key.to_user_string() for node in nodes),
            frozenset(f"{key.asset_key.to_user_string()}:{key.name}" for key in graph.asset_check_keys),
            # Dagster's own is in every code location
            frozenset(set(repository.job_names) - {"__ASSET_JOB"}),
            frozenset({s.name for s in repository.sensor_defs} | {s.name for s in repository.schedule_defs}),
            frozenset(node.name for node in defs.resolve_implicit_global_asset_job_def().graph.nodes),
            frozenset(pool for node in nodes for pool in node.pools or ()),
            frozenset(str(node.group_name) for node in nodes),
        )

    def shared(self, other: Names) -> set[str]:
        return {name for kind in vars(self) for name in getattr(self, kind) & getattr(other, kind)}


def location(franchises: str, **values: object) -> dg.Definitions:
    """The definitions of a code location without what an instance has once."""
    return build_defs(Settings(franchises=franchises, crm_enabled=False, maintenance_enabled=False, **values))  # type: ignore[arg-type]


def test_franchises_share_no_name_in_one_location_or_in_two() -> None:
    """The same key in two places is one asset for Dagster, and a run key or pool of the same name one of both."""
    north, south = Names.of(location("north")), Names.of(location("south"))
    assert north.shared(south) == set()
    both = Names.of(location("north,south"))
    for kind in vars(both):
        assert getattr(both, kind) == getattr(north, kind) | getattr(south, kind), kind


def test_names_of_the_only_business_have_no_prefix() -> None:
    """Without FRANCHISES everything has the names that it always had: histories in the instance go on."""
    names = Names.of(build_defs(Settings()))
    analytics = (
        "call_facts", "channel_aliases", "daily_metrics", "daily_spend", "job_facts", "lead_channels", "lead_facts",
        "monthly_metrics", "orphan_payments", "source_names", "targets",
    )  # fmt: skip
    raw = ("calls", "elocals_leads", "google_spend", "jobs", "payments", "proref_leads", "workiz_leads")
    assert names.assets == {
        "crm/audit_seals", "crm/schema", "operation/alerts",
        *(f"analytics/{name}" for name in analytics), *(f"raw/{name}" for name in raw),
    }  # fmt: skip
    assert names.jobs == {
        "check_freshness", "check_history", "crm_attacks", "crm_deploy", "crm_guards", "crm_invariants", "crm_seal",
        "prune_old_events", "refresh",
    }  # fmt: skip
    assert names.automation == {
        "alerts", "load_landing_files", "number_crm_changes", "refresh_stale_months", "check_freshness_hourly",
        "check_history_nightly", "crm_attacks_schedule", "crm_guards_schedule", "crm_invariants_schedule",
        "crm_seal_schedule", "nightly_refresh", "prune_old_events_nightly",
    }  # fmt: skip
    assert names.pools == {"loads_and_metrics"}
    assert names.groups == {"channels", "crm", "facts", "metrics", "operation", "raw"}
    assert set(build_defs(Settings()).resources or {}) == {"analytics", "landing", "settings", "crm_database"}


def test_a_franchise_has_what_the_only_business_has() -> None:
    """Every asset, check, job, sensor and schedule of the only business is there for each franchise, prefixed."""
    alone = Names.of(build_defs(Settings(crm_enabled=False, maintenance_enabled=False)))
    north = Names.of(location("north"))
    for kind in ("assets", "checks"):
        assert getattr(north, kind) == {f"north/{name}" for name in getattr(alone, kind)}
    for kind in ("jobs", "automation", "pools", "groups"):
        assert getattr(north, kind) == {f"north__{name}" for name in getattr(alone, kind)}
    assert north.steps == {f"north__{name}" for name in alone.steps}
    assert set(location("north").resources or {}) == {"north__analytics", "north__landing"}


def test_crm_and_maintenance_are_switched_off_where_another_location_has_them() -> None:
    """An instance has one CRM and one pruning: two locations with them would be two of the same name."""
    common = Names.of(build_defs(Settings(franchises="north"))), Names.of(location("north"))
    assert common[0].assets - common[1].assets == {"crm/audit_seals", "crm/schema", "operation/alerts"}
    assert {name for name in common[0].automation if "__" not in name} == {
        "alerts", "number_crm_changes", "crm_attacks_schedule", "crm_guards_schedule", "crm_invariants_schedule",
        "crm_seal_schedule", "prune_old_events_nightly",
    }  # fmt: skip
    assert all(name.startswith("north__") for name in common[1].automation | common[1].jobs)


def test_lineage_and_months_are_each_franchises_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents and columns lead to the same franchise; months and schedules are in its timezone, from its first month."""
    monkeypatch.setenv("SOUTH_START_MONTH", "2024-05")
    monkeypatch.setenv("SOUTH_BUSINESS_TIMEZONE", "America/Chicago")
    defs = location("north,south")
    graph = defs.resolve_asset_graph()
    for node in graph.asset_nodes:
        (name, *_) = node.key.path
        assert {parent.path[0] for parent in node.parent_keys} <= {name}
        lineage = node.metadata.get("dagster/column_lineage")
        origins = [origin for found in lineage.deps_by_column.values() for origin in found] if lineage else []
        assert {origin.asset_key.path[0] for origin in origins} <= {name}
    months = {
        name: graph.get(dg.AssetKey([name, "raw", "jobs"])).partitions_def for name in ("north", "south")
    }
    assert months["north"].get_first_partition_key() == "2023-01"  # type: ignore[union-attr]
    assert months["south"].get_first_partition_key() == "2024-05"  # type: ignore[union-attr]
    repository = defs.get_repository_def()
    zones = {
        name: repository.get_schedule_def(f"{name}__nightly_refresh").execution_timezone
        for name in ("north", "south")
    }
    assert zones == {"north": "America/New_York", "south": "America/Chicago"}


@dataclass
class Chain:
    """Franchises on one instance."""

    instance: dg.DagsterInstance
    common: Settings

    def of(self, name: str) -> Settings:
        return self.common.of(name)

    def run(self, name: str, selection: list[dg.AssetKey] | None = None) -> dg.ExecuteInProcessResult:
        """Runs a franchise's job `refresh` for October, with the definitions of all franchises."""
        return (
            build_defs(self.common)
            .resolve_job_def(f"{name}__refresh")
            .execute_in_process(
                instance=self.instance,
                tags=range_tags(OCTOBER, OCTOBER),
                asset_selection=selection,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
            )
        )

    def count(self, name: str, table: str) -> int:
        with psycopg.connect(self.of(name).analytics_database_url or "") as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    def done(self, name: str) -> bool:
        """Returns whether the franchise's metrics of October are materialized."""
        key = dg.AssetKey([name, *MONTHLY.path])
        return "2024-10" in self.instance.get_materialized_partitions(key)


@pytest.fixture
def chain(
    new_database: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Chain]:
    """Franchises north and south with databases that are theirs, on the instance that dagster.yaml describes."""
    monkeypatch.setattr(LocalFolder, "quiet_seconds", 0)
    for name in ("north", "south"):
        url = new_database("analytics")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("UPDATE analytics.business SET franchise = %s", [name])
        monkeypatch.setenv(f"{name.upper()}_ANALYTICS_DATABASE_URL", url)
        (tmp_path / "landing" / name).mkdir(parents=True)
    common = Settings(
        franchises="north,south",
        dagster_postgres_url=new_database("dagster"),
        landing_dir=tmp_path / "landing",
        crm_analytics_home=tmp_path / "state",
        crm_enabled=False,
    )
    with open_instance(common) as instance:
        yield Chain(instance, common)


def drop(config: Settings, *rows: str) -> None:
    path = config.landing_dir / "jobs" / "a.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([JOBS_HEADER, *rows]) + "\n")


def test_the_same_month_of_two_franchises_has_two_states(chain: Chain) -> None:
    """A run of one franchise materializes its month, and writes nothing into the other's database."""
    drop(chain.of("north"), job_row("AAAAAA", "2024-10-31"))
    drop(chain.of("south"), job_row("BBBBBB", "2024-10-30"), job_row("CCCCCC", "2024-10-31"))
    assert chain.run("north").success
    assert (chain.done("north"), chain.done("south")) == (True, False)
    assert (chain.count("north", "raw.jobs"), chain.count("south", "raw.jobs")) == (1, 0)
    assert chain.count("south", "analytics.refresh_log") == chain.count("south", "raw.source_files") == 0
    assert chain.run("south").success
    assert chain.done("south")
    assert (chain.count("north", "raw.jobs"), chain.count("south", "raw.jobs")) == (1, 2)


def test_a_run_refuses_another_franchises_database(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database knows whose it is, so that a wrong address fails instead of mixing two businesses' rows."""
    drop(chain.of("south"), job_row("BBBBBB", "2024-10-30"))
    monkeypatch.setenv("SOUTH_ANALYTICS_DATABASE_URL", chain.of("north").analytics_database_url or "")
    result = chain.run("south")
    assert not result.success
    told = {
        str(event.step_failure_data.error.cause.message if event.step_failure_data.error.cause else event)
        for event in result.get_step_failure_events()
        if event.step_failure_data.error
    }
    assert any(
        "this database is franchise north's, but these settings are of franchise south" in text
        for text in told
    ), told
    assert chain.count("north", "raw.jobs") == 0


def test_sensors_ask_for_their_own_franchise(chain: Chain) -> None:
    """A file of one franchise asks for that franchise's assets, in its job, under a key of its own."""
    drop(chain.of("south"), job_row("BBBBBB", "2024-10-30"))
    defs = build_defs(chain.common)
    asked = {}
    for name in ("north", "south"):
        context = dg.build_sensor_context(
            instance=chain.instance, definitions=defs, resources=dict(defs.resources or {})
        )
        sensor = defs.get_repository_def().get_sensor_def(f"{name}__load_landing_files")
        assert sensor.job_name == f"{name}__refresh"
        asked[name] = sensor.evaluate_tick(context).run_requests or []
    assert asked["north"] == []
    (request,) = asked["south"]
    assert request.asset_selection == [dg.AssetKey(["south", "raw", "jobs"])]
    assert (request.run_key or "").startswith("south__files:")


def test_each_alert_is_sent_once_and_names_its_franchise(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, webhook: Webhook
) -> None:
    """Of the sensors of all franchises and the common one, exactly one tells of a failed run, and says whose it is."""
    chain.common = chain.common.model_copy(update={"alert_webhook_url": webhook.url})
    defs = build_defs(chain.common)
    names = ("alerts", "north__alerts", "south__alerts")
    cursors: dict[str, str | None] = dict.fromkeys(names)

    def tick() -> list[str]:
        """Ticks all of them; returns the names of those that sent something."""
        sent = []
        for name in names:
            before = len(webhook.texts)
            context = dg.build_sensor_context(
                instance=chain.instance,
                cursor=cursors[name],
                definitions=defs,
                resources=dict(defs.resources or {}),
            )
            cursors[name] = defs.get_repository_def().get_sensor_def(name).evaluate_tick(context).cursor
            sent += [name] * (len(webhook.texts) - before)
        return sent

    tick()
    with psycopg.connect(chain.of("north").analytics_database_url or "", autocommit=True) as connection:
        connection.execute("ALTER TABLE raw.jobs RENAME TO gone")
    # in the job, and as "Materialize" in the UI does
    assert not chain.run("north", [dg.AssetKey(["north", "raw", "jobs"])]).success
    assert tick() == ["north__alerts"]
    assert webhook.texts[-1].startswith("*Run failed: north__refresh, 2024-10")
    defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=chain.instance,
        tags=range_tags(OCTOBER, OCTOBER),
        asset_selection=[dg.AssetKey(["north", "raw", "jobs"])],
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        raise_on_error=False,
    )
    assert tick() == ["north__alerts"]

    @dg.op
    def fails() -> None:
        raise ValueError("disk full")

    @dg.job
    def prune_old_events() -> None:
        fails()

    prune_old_events.execute_in_process(instance=chain.instance, raise_on_error=False)
    assert tick() == ["alerts"]
    assert tick() == []
    pages = {
        key: chain.instance.fetch_observations(dg.AssetKey(key.split("/")), limit=9).records
        for key in ("operation/alerts", "north/operation/alerts", "south/operation/alerts")
    }
    assert {key: len(records) for key, records in pages.items()} == {
        "operation/alerts": 1,
        "north/operation/alerts": 2,
        "south/operation/alerts": 0,
    }


@pytest.mark.parametrize(
    ("franchise", "name", "is_its"),
    [
        ("north", "north__refresh", True),
        ("north", "north_east__refresh", False),
        ("north_east", "north__refresh", False),
        ("north", "crm_guards", False),
        ("", "crm_guards", True),
        ("", "north__refresh", False),
    ],
)
def test_names_tell_their_franchise(franchise: str, name: str, is_its: bool) -> None:
    """A name that begins like another franchise's is not its; what has no prefix belongs to none."""
    assert Franchise(Settings(franchise=franchise, franchises="north,north_east")).has_name(name) is is_its


def test_fifty_franchises_load() -> None:
    """A location of fifty franchises loads, and its graph has all of their assets and checks, each once."""
    code = (
        "import json; from crm_analytics.definitions import defs;"
        " graph = defs.resolve_asset_graph(); keys = graph.get_all_asset_keys();"
        " print(json.dumps([len(keys), len(graph.asset_check_keys), len(defs.get_repository_def().job_names)]))"
    )
    names = ",".join(f"f{number}" for number in range(50))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "FRANCHISES": names, "CRM_ANALYTICS_ENV_FILE": "none"},
    )
    alone = Names.of(build_defs(Settings(crm_enabled=False, maintenance_enabled=False)))
    crm = 3, len(Names.of(build_defs(Settings())).checks) - len(alone.checks), 7
    assert json.loads(done.stdout) == [
        50 * len(alone.assets) + crm[0],
        50 * len(alone.checks) + crm[1],
        50 * len(alone.jobs) + crm[2],
    ]
    assert DAILY.to_user_string() in alone.assets
