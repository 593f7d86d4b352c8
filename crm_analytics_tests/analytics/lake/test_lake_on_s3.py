"""The lake on a real server with the API of S3."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pyarrow import fs

from crm_analytics.analytics.lake import tables
from crm_analytics.analytics.lake.compare import differences
from crm_analytics.analytics.lake.datasets import DATASETS
from crm_analytics.analytics.lake.tables import open_lake
from crm_analytics_tests.analytics.lake.conftest import LakeLab
from crm_analytics_tests.analytics.lake.test_lake_writes import put
from crm_analytics_tests.conftest import PATIENCE
from crm_analytics_tests.ports import free_port

KEY, SECRET = "test-key", "test-secret"
IDENTITIES = (
    '{"identities": [{"name": "tests", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],'
    ' "actions": ["Admin", "Read", "Write", "List"]}]}'
)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """SeaweedFS with a bucket named lakes."""
    identities = tmp_path / "identities.json"
    identities.write_text(IDENTITIES % (KEY, SECRET))
    ports = {
        f"{role}{kind}": free_port()
        for role in ("master", "volume", "filer", "s3")
        for kind in (".port", ".port.grpc")
    }
    command = [
        str(Path(sys.executable).parent / "weed"), "server", "-ip=127.0.0.1", f"-dir={tmp_path}", "-filer", "-s3",
        f"-s3.config={identities}", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64", "-volume.max=50", *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            found = f"127.0.0.1:{ports['s3.port']}"
            files = fs.S3FileSystem(
                access_key=KEY, secret_key=SECRET, endpoint_override=found, scheme="http", region="us-east-1",
                allow_bucket_creation=True,
            )  # fmt: skip
            deadline = time.monotonic() + PATIENCE
            while True:
                with suppress(OSError):
                    files.create_dir("lakes")
                    break
                assert time.monotonic() < deadline and process.poll() is None, (
                    "the object storage doesn't start"
                )
                time.sleep(0.2)
            yield f"http://{found}"
        finally:
            process.kill()  # its data is not needed
            process.wait()


def test_a_lake_on_object_storage(
    endpoint: str, analytics: psycopg.Connection[Any], new_lake: Callable[..., LakeLab]
) -> None:
    """Written, restated, compared and swept as on disk; the credentials are nowhere in the lake's own files."""
    lake = new_lake(
        lake_url="s3://lakes/all",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        aws_region="us-east-1",
        aws_endpoint_url=endpoint,
    )
    for paid in ("1.00", "2.50"):
        put(analytics, "A", date(2024, 5, 1), paid)
        put(analytics, "B", date(2024, 6, 1), "7.00")
        lake.write(analytics)
    with open_lake(lake.settings) as opened:
        assert differences(analytics, opened) == []
        table = opened.catalog.load_table(("lake", "job_facts"))
        rows = {(r["month"], r["paid_total"]) for r in table.scan().to_arrow().to_pylist()}
        assert rows == {(date(2024, 5, 1), Decimal("2.50")), (date(2024, 6, 1), Decimal("7.00"))}
        assert table.metadata_location.startswith("s3://lakes/all/")
        for dataset in DATASETS:
            assert SECRET not in opened.catalog.load_table(("lake", dataset.name)).metadata.model_dump_json()
        # nothing is old enough, then everything is: what the snapshots need stays
        assert tables.sweep(opened.catalog, "job_facts", datetime(2020, 1, 1, tzinfo=UTC)) == 0
        tables.sweep(opened.catalog, "job_facts", datetime(2100, 1, 1, tzinfo=UTC))
        assert differences(analytics, opened) == []
        for snapshot in table.snapshots():
            assert table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows == 2
