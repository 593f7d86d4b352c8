"""Two code servers on "hosts" of their own, which share nothing but the databases and the object storage.

A host is a folder with its own state folder and processes. The web server and the daemon are on a third one. Dagster's
database has a pooler before it that gives every transaction another session.
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
from crm_analytics_tests.object_storage import Prefix
from crm_analytics_tests.pooler import pooled
from crm_analytics_tests.ports import free_port

#: `HOSTS_MONTHS=24` makes it two years, as in production; they only take longer.
MONTHS = int(os.environ.get("HOSTS_MONTHS", "4"))
#: The advisory lock that a load of jobs waits for.
HANGING = 4711
#: The sample's jobs with a date that is none, and without an id.
QUARANTINED = {"BAD001", ""}
#: Seconds in which a dead run is failed: its lease lapses after 15, the daemon looks every 10, twice. The machine is busy.
NOTICED = 60


class Host:
    """One host: its folder, its variables, and what runs there. `kill` is the end of everything that does."""

    def __init__(self, name: str, folder: Path, variables: dict[str, str]) -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir()
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
    """The host of a franchise's code server, its analytics database, and its exports in object storage.

    `exports` is a folder of the test that has the same; no host knows it.
    """

    def __init__(
        self, name: str, folder: Path, variables: dict[str, str], url: str, port: int, prefix: Prefix
    ) -> None:
        self.url, self.port, self.prefix = url, port, prefix
        self.exports = folder / "exports" / name
        own = {f"{name.upper()}_ANALYTICS_DATABASE_URL": url, "FRANCHISES": name}
        # a franchise's exports are in the folder of its name
        super().__init__(name, folder, {**variables, **prefix.variables, **own})
        migrations.migrate("analytics", config=Settings(franchise=name, analytics_database_url=url))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                f"""
                CREATE FUNCTION public.hang() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN PERFORM pg_advisory_xact_lock({HANGING}); RETURN NULL; END $$;
                CREATE TRIGGER hang AFTER INSERT ON raw.jobs EXECUTE FUNCTION public.hang()
                """.encode()
            )

    def upload(self) -> None:
        """Puts the exports into object storage."""
        for path in self.files():
            self.prefix.write(f"{self.name}/{path.relative_to(self.exports).as_posix()}", path.read_bytes())

    def files(self) -> list[Path]:
        return [path for path in self.exports.rglob("[!.]*") if path.is_file()]

    def serve(self) -> None:
        self.start(
            "dagster", "api", "grpc", "-h", "127.0.0.1", "-p", str(self.port),
            "-m", "crm_analytics.definitions", "--location-name", self.name,
        )  # fmt: skip

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(sql.encode(), values or None).fetchall()

    @contextmanager
    def hanging_loads(self) -> Iterator[None]:
        with psycopg.connect(self.url) as connection:
            connection.execute(f"SELECT pg_advisory_xact_lock({HANGING})")
            yield

    def loads(self) -> bool:
        blocked = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = %s"
        database = " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        return bool(self.query(blocked + database, HANGING))

    def has_loaded(self) -> bool:
        """Whether every export in the folder is known, and the months of all of them are computed."""
        exports = {path.relative_to(self.exports).as_posix() for path in self.files()}
        known = self.query("SELECT path FROM raw.source_files")
        stale = self.query("SELECT month FROM analytics.stale_months")
        return exports == {path for (path,) in known} and not stale

    def jobs(self) -> set[str]:
        """Returns the ids of the good jobs in the exports, as the csv module reads them."""
        found = set[str]()
        for path in (self.exports / "jobs").glob("*.csv"):
            with path.open(newline="", encoding="utf-8-sig") as file:
                found |= {row["UUID"] for row in csv.DictReader(file)}
        return found - QUARANTINED


class Fleet:
    """The hosts and Dagster's database."""

    def __init__(self, north: Franchise, south: Franchise, center: Host, dagster: str, port: int) -> None:
        self.north, self.south, self.center, self.dagster, self.port = north, south, center, dagster, port

    def wait(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> float:
        """Waits until something is so; returns how long it took, in seconds."""
        begun = time.monotonic()
        while not condition():
            logs = f"{self.center.log}\n{self.north.log}\n{self.south.log}"
            assert time.monotonic() - begun < seconds, f"{logs}\n{self.runs()}\n{self.sessions()}"
            time.sleep(0.2)
        return time.monotonic() - begun

    def sessions(self) -> list[tuple[Any, ...]]:
        """Returns what the server does for both franchises."""
        shown = "datname, state, wait_event, left(query, 200)"
        sql = f"SELECT {shown} FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return self.north.query(sql) + self.south.query(sql)

    def runs(self) -> list[tuple[Any, ...]]:
        return self.query("SELECT run_id, pipeline_name, status FROM runs ORDER BY id")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dagster, autocommit=True) as connection:
            return connection.execute(sql.encode(), values or None).fetchall()

    def loading(self, host: Franchise) -> list[str]:
        """Waits until a franchise's load hangs; returns the runs that load, one of which hangs and others wait for it."""
        self.wait(host.loads)
        runs = self.query(
            "SELECT DISTINCT run_id FROM runs JOIN event_logs USING (run_id) WHERE status = 'STARTED'"
            f" AND dagster_event_type = 'STEP_START' AND step_key = '{host.name}__raw__jobs'"
        )
        return [run for (run,) in runs]

    def wait_until_failed(self, runs: list[str]) -> None:
        status = "SELECT DISTINCT status FROM runs WHERE run_id = ANY (%s)"
        self.wait(lambda: self.query(status, runs) == [("FAILURE",)], NOTICED)

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

    def backfill(self, franchise: str, months: list[str]) -> str:
        """Starts a backfill of a franchise's tables of jobs, payments and metrics; returns its id."""
        tables = ("raw/jobs", "raw/payments", "analytics/daily_metrics", "analytics/monthly_metrics")
        done = self.ask(
            """
            mutation($assets: [AssetKeyInput!]!, $months: [String!]!) {
              launchPartitionBackfill(backfillParams: {assetSelection: $assets, partitionNames: $months})
              { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
            }""",
            assets=[{"path": [franchise, *table.split("/")]} for table in tables],
            months=months,
        )["launchPartitionBackfill"]
        assert done["__typename"] == "LaunchBackfillSuccess", done
        return str(done["backfillId"])


@pytest.fixture
def fleet(new_database: Callable[..., str], tmp_path: Path, prefix: Prefix) -> Iterator[Fleet]:
    dagster, ports = new_database("dagster"), [free_port() for _ in range(3)]
    today = datetime.now(Settings().timezone).date()
    first = list(months_between(date(today.year - 3, 1, 1), today))[-MONTHS]
    with pooled(dagster, sessions=6) as address:
        common = {"DAGSTER_POSTGRES_URL": address, "START_MONTH": f"{first:%Y-%m}", "CRM_ENABLED": "false"}
        north = Franchise("north", tmp_path, common, new_database(), ports[0], prefix)
        less = {**common, "MAINTENANCE_ENABLED": "false"}
        south = Franchise("south", tmp_path, less, new_database(), ports[1], prefix)
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
        write_landing(host.exports, months=MONTHS, seed=seed)
        host.upload()
        host.serve()
    fleet.center.start("dagster-webserver", "-h", "127.0.0.1", "-p", str(fleet.port), "-w", str(fleet.center.folder / "hosts.yaml"))  # fmt: skip
    fleet.center.start("dagster-daemon", "run", "-w", str(fleet.center.folder / "hosts.yaml"))
    with south.hanging_loads():
        fleet.wait(north.has_loaded)
        killed = fleet.loading(south)
        fleet.wait(fleet.served)
        fleet.wait(lambda: len(fleet.materialized("north", "raw/jobs")) == MONTHS)
        months = fleet.materialized("north", "raw/jobs")
        assert fleet.materialized("south", "raw/jobs") == set(), "the same months, another state"
        south.kill()  # the host, with the code server and the run's worker
        with north.hanging_loads():
            drop_jobs(north)
            runs = fleet.loading(north)
            for run in runs:
                os.kill(fleet.worker(run), signal.SIGKILL)
            fleet.wait_until_failed(runs)
        fleet.wait(north.has_loaded)
        fleet.wait_until_failed(killed)
    south.serve()
    fleet.wait(south.has_loaded)
    fleet.wait(fleet.served)

    backfills = [fleet.backfill(host.name, sorted(months)) for host in (north, south)]
    ended = "SELECT status FROM runs JOIN run_tags USING (run_id) WHERE key = 'dagster/backfill' AND value = ANY (%s)"
    fleet.wait(lambda: fleet.query(ended, backfills) == [("SUCCESS",)] * 2)
    counted = []
    for host in (north, south):
        assert fleet.materialized(host.name, "analytics/monthly_metrics") == months
        times_loaded = "SELECT DISTINCT source, count(*) FROM raw.source_files WHERE status = 'loaded' GROUP BY source, path"
        exported = {folder.name for folder in host.exports.iterdir() if folder.is_dir()}
        loaded = host.query(times_loaded)
        assert {times for _, times in loaded} == {1} and exported <= {source for source, _ in loaded}
        assert {job for (job,) in host.query("SELECT job_id FROM raw.jobs")} == host.jobs()
        counted += host.query("SELECT sum(jobs), count(DISTINCT month) FROM analytics.monthly_metrics")
    assert counted == [(len(host.jobs()), MONTHS) for host in (north, south)]
    assert north.jobs().isdisjoint(south.jobs())


def drop_jobs(host: Franchise) -> None:
    """Uploads one more export of jobs: the header and the first row of another, with another id."""
    first, *_ = sorted((host.exports / "jobs").glob("*.csv"))
    with first.open(newline="", encoding="utf-8-sig") as file:
        row = next(csv.DictReader(file))
    path = host.exports / "jobs" / "late.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow({**row, "UUID": "LATEJOB1"})
    host.upload()
