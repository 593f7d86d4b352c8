"""Two code servers that share nothing but the databases, on "hosts" of their own, behind a pooler.

A host is a folder with its own landing folder, state folder and processes. The web server and the daemon are on a third
one. Dagster's database has a pooler before it that gives every transaction another session.
"""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from crm_analytics.core import migrations
from crm_analytics.core.months import months_between
from crm_analytics.core.settings import PROJECT_DIR, Settings
from crm_analytics.demo.sample_exports import write_landing
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.pooler import pooled
from crm_analytics_tests.ports import free_port

#: `HOSTS_MONTHS=24` makes it two years, as in production; they only take longer.
MONTHS = int(os.environ.get("HOSTS_MONTHS", "4"))
#: The advisory lock that a load of jobs waits for.
HANGING = 4711
#: Seconds in which a dead run is failed: its lease lapses after 15, the daemon looks every 10, twice. The machine is busy.
NOTICED = 60


class Host:
    """One host: its folder, its variables, and what runs there. `kill` is the end of everything that does."""

    def __init__(self, name: str, folder: Path, variables: dict[str, str]) -> None:
        self.name, self.folder = name, folder / name
        self.landing = self.folder / "landing"
        self.landing.mkdir(parents=True)
        self.environment = {
            **os.environ,
            **variables,
            "DAGSTER_HOME": str(PROJECT_DIR),
            "CRM_ANALYTICS_HOME": str(self.folder / "state"),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "TMPDIR": str(self.folder),
        }
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str) -> None:
        with (self.folder / "log").open("ab") as log:
            program = Path(sys.executable).parent / words[0]
            self.running.append(
                subprocess.Popen(
                    [program, *words[1:]], env=self.environment, cwd=PROJECT_DIR, stdout=log, stderr=log,
                    start_new_session=True,
                )
            )  # fmt: skip

    def kill(self) -> None:
        for process in self.running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.running.clear()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]


class Franchise(Host):
    """The host of a franchise's code server, and its analytics database."""

    def __init__(self, name: str, folder: Path, variables: dict[str, str], url: str, port: int) -> None:
        self.url, self.port = url, port
        own = {f"{name.upper()}_ANALYTICS_DATABASE_URL": url, "FRANCHISES": name}
        super().__init__(name, folder, {**variables, **own})
        # until `landing`, or LANDING_DIR, says otherwise it is a folder of the franchise's name in the common one
        self.environment["LANDING_DIR"] = str(self.landing)
        self.landing = self.landing / name
        migrations.migrate(
            "analytics", config=Settings(franchise=name, analytics_database_url=url, landing_dir=self.landing)
        )
        self.query(
            f"CREATE FUNCTION public.hang() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$ BEGIN PERFORM pg_advisory_xact_lock({HANGING}); RETURN NULL; END $$;"
            "CREATE TRIGGER hang AFTER INSERT ON raw.jobs EXECUTE FUNCTION public.hang()"
        )

    def serve(self) -> None:
        self.start(
            "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(self.port),
            "-m", "crm_analytics.definitions", "--location-name", self.name,
        )  # fmt: skip

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def hanging_loads(self) -> Iterator[None]:
        with psycopg.connect(self.url) as connection:
            connection.execute(f"SELECT pg_advisory_xact_lock({HANGING})")
            yield

    def loads(self) -> bool:
        blocked = "SELECT FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = %s"
        database = " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        return bool(self.query(blocked + database, HANGING))

    def has_loaded(self) -> bool:
        """Whether every export in the folder is known, and the months of all of them are computed."""
        files = [path for path in self.landing.rglob("[!.]*") if path.is_file()]
        known = self.query("SELECT path FROM raw.source_files")
        stale = self.query("SELECT FROM analytics.stale_months")
        return {str(path.relative_to(self.landing)) for path in files} == {
            path for (path,) in known
        } and not stale

    def jobs(self) -> set[str]:
        """Returns the ids of the jobs in the exports, as the csv module reads them."""
        found = set[str]()
        for path in (self.landing / "jobs").glob("*.csv"):
            with path.open(newline="", encoding="utf-8-sig") as file:
                found |= {row["UUID"] for row in csv.DictReader(file)}
        return found


class Fleet:
    """The hosts and Dagster's database."""

    def __init__(self, north: Franchise, south: Franchise, center: Host, dagster: str, port: int) -> None:
        self.north, self.south, self.center, self.dagster, self.port = north, south, center, dagster, port

    def wait(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> float:
        """Waits until something is so; returns how long it took, in seconds."""
        begun = time.monotonic()
        while not condition():
            logs = f"{self.center.log}\n{self.north.log}\n{self.south.log}"
            assert time.monotonic() - begun < seconds, f"{logs}\n{self.runs()}"
            time.sleep(0.2)
        return time.monotonic() - begun

    def runs(self) -> list[tuple[Any, ...]]:
        return self.query("SELECT run_id, pipeline_name, status FROM runs ORDER BY id")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dagster, autocommit=True) as connection:
            return connection.execute(sql.encode(), values or None).fetchall()

    def loading(self, host: Franchise) -> str:
        """Waits until a franchise's load hangs; returns its run."""
        self.wait(host.loads)
        ((run,),) = self.query(
            "SELECT DISTINCT run_id FROM runs JOIN event_logs USING (run_id) WHERE status = 'STARTED'"
            f" AND dagster_event_type = 'STEP_START' AND step_key = '{host.name}__raw__jobs'"
        )
        return str(run)

    def status(self, run_id: str) -> str:
        return str(self.query("SELECT status FROM runs WHERE run_id = %s", run_id)[0][0])

    def worker(self, run_id: str) -> int:
        """Returns the process that executes a run, as the run's events name it."""
        events = self.query("SELECT event FROM event_logs WHERE run_id = %s", run_id)
        (pid,) = {found[1] for (event,) in events if (found := re.search(r"for run \(pid: (\d+)\)", event))}
        return int(pid)

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Asks the web server as the UI does."""
        asked = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", asked, {"Content-Type": "application/json"}
        )
        return dict(json.load(urllib.request.urlopen(request, timeout=60))["data"])

    def served(self) -> bool:
        """Whether the UI answers and has both locations."""
        try:
            entries = self.ask(
                "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"
            )["workspaceOrError"]["locationEntries"]
        except OSError:
            return False
        kinds = {entry["name"]: (entry["locationOrLoadError"] or {}).get("__typename") for entry in entries}
        return kinds == {"north": "RepositoryLocation", "south": "RepositoryLocation"}

    def materialized(self, franchise: str, table: str) -> set[str]:
        """Returns the months of a table that the UI shows as materialized."""
        node = self.ask(
            """
            query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
                partitionKeys
                assetPartitionStatuses { ... on TimePartitionStatuses { ranges { status startKey endKey } } }
            } } }""",
            key={"path": [franchise, *table.split("/")]},
        )["assetNodeOrError"]
        keys, found = node["partitionKeys"], set[str]()
        for part in node["assetPartitionStatuses"]["ranges"]:
            if part["status"] == "MATERIALIZED":
                found.update(keys[keys.index(part["startKey"]) : keys.index(part["endKey"]) + 1])
        return found

    def backfill(self, months: list[str]) -> str:
        """Starts one backfill of both franchises' metrics; returns its id."""
        done = self.ask(
            """
            mutation($assets: [AssetKeyInput!]!, $months: [String!]!) {
              launchPartitionBackfill(backfillParams: {assetSelection: $assets, partitionNames: $months})
              { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
            }""",
            assets=[
                {"path": [franchise, *table.split("/")]}
                for franchise in ("north", "south")
                for table in (*(f"raw/{name}" for name in ("jobs", "payments")), "analytics/daily_metrics", "analytics/monthly_metrics")
            ],
            months=months,
        )["launchPartitionBackfill"]  # fmt: skip
        assert done["__typename"] == "LaunchBackfillSuccess", done
        return str(done["backfillId"])


@pytest.fixture
def fleet(new_database: Callable[..., str], tmp_path: Path) -> Iterator[Fleet]:
    dagster, ports = new_database("dagster"), [free_port() for _ in range(3)]
    today = datetime.now(Settings().timezone).date()
    first = list(months_between(date(today.year - 3, 1, 1), today))[-MONTHS]
    with pooled(dagster, sessions=6) as address:
        common = {"DAGSTER_POSTGRES_URL": address, "START_MONTH": f"{first:%Y-%m}"}
        crm = {**common, "CRM_DATABASE_URL": new_database("crm")}
        none = {**common, "CRM_ENABLED": "false", "MAINTENANCE_ENABLED": "false"}
        north = Franchise("north", tmp_path, crm, new_database(), ports[0])
        south = Franchise("south", tmp_path, none, new_database(), ports[1])
        center = Host("center", tmp_path, {"DAGSTER_POSTGRES_URL": address})
        (hosts,) = re.findall(
            r"```yaml\n(load_from:.*?)```", (PROJECT_DIR / "docs" / "scale.md").read_text(), re.S
        )
        workspace = yaml.safe_load(hosts)
        for entry, host in zip(workspace["load_from"], (north, south), strict=True):
            assert entry["grpc_server"]["location_name"] == host.name
            entry["grpc_server"].update(host="127.0.0.1", port=host.port)
        (center.folder / "hosts.yaml").write_text(yaml.safe_dump(workspace))
        try:
            yield Fleet(north, south, center, dagster, ports[2])
        finally:
            for stopped in (center, north, south):
                stopped.kill()


def test_two_hosts_load_backfill_and_recover(fleet: Fleet) -> None:
    """Each franchise's files are loaded once and its months computed, whatever is killed, and the other goes on."""
    north, south = fleet.north, fleet.south
    for host, seed in ((north, 1), (south, 2)):
        write_landing(host.landing, months=MONTHS, seed=seed)
        host.serve()
    fleet.center.start("dagster-webserver", "-h", "127.0.0.1", "-p", str(fleet.port), "-w", str(fleet.center.folder / "hosts.yaml"))  # fmt: skip
    fleet.center.start("dagster-daemon", "run", "-w", str(fleet.center.folder / "hosts.yaml"))
    with south.hanging_loads():
        fleet.wait(north.has_loaded)
        killed = fleet.loading(south)
        fleet.wait(fleet.served)
        months = fleet.materialized("north", "analytics/monthly_metrics")
        assert len(months) == MONTHS
        assert fleet.materialized("south", "analytics/monthly_metrics") == set(), (
            "the same months, another state"
        )
        south.kill()  # the host, with the code server and the run's worker
        with north.hanging_loads():
            drop_jobs(north)
            alone = fleet.loading(north)
            os.kill(fleet.worker(alone), signal.SIGKILL)
            fleet.wait(lambda: fleet.status(alone) == "FAILURE", NOTICED)
        fleet.wait(north.has_loaded)
        fleet.wait(lambda: fleet.status(killed) == "FAILURE", NOTICED)
    south.serve()
    fleet.wait(south.has_loaded)
    fleet.wait(fleet.served)

    backfill = fleet.backfill(sorted(months))
    ended = (
        "SELECT status FROM runs JOIN run_tags USING (run_id) WHERE key = 'dagster/backfill' AND value = %s"
    )
    fleet.wait(lambda: fleet.query(ended, backfill) == [("SUCCESS",)] * 2)
    counted = []
    for host in (north, south):
        assert fleet.materialized(host.name, "analytics/monthly_metrics") == months
        times_loaded = "SELECT DISTINCT source, count(*) FROM raw.source_files WHERE status = 'loaded' GROUP BY source, path"
        exported = sorted(folder.name for folder in host.landing.iterdir())
        assert sorted(host.query(times_loaded)) == [(source, 1) for source in exported]
        assert {job for (job,) in host.query("SELECT job_id FROM raw.jobs")} == host.jobs()
        counted += host.query("SELECT sum(jobs), count(DISTINCT month) FROM analytics.monthly_metrics")
    assert counted == [(len(host.jobs()), MONTHS) for host in (north, south)]
    assert north.jobs().isdisjoint(south.jobs())


def drop_jobs(host: Franchise) -> None:
    """Drops one more export of jobs: the header and the first row of another, with another id."""
    first, *_ = sorted((host.landing / "jobs").glob("*.csv"))
    with first.open(newline="", encoding="utf-8-sig") as file:
        row = next(csv.DictReader(file))
    path = host.landing / "jobs" / "late.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow({**row, "UUID": "LATEJOB1"})
    os.utime(path, (time.time() - 60, time.time() - 60))
