"""The lake on a real server with the API of S3."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import psycopg

from crm_analytics.analytics.lake import tables
from crm_analytics.analytics.lake.compare import differences
from crm_analytics.analytics.lake.datasets import DATASETS
from crm_analytics.analytics.lake.tables import open_lake
from crm_analytics_tests.analytics.lake.conftest import LakeLab
from crm_analytics_tests.analytics.lake.test_lake_writes import put
from crm_analytics_tests.object_storage import BUCKET, KEY, SECRET


def test_a_lake_on_object_storage(
    object_storage: str, analytics: psycopg.Connection[Any], new_lake: Callable[..., LakeLab]
) -> None:
    """Written, restated, compared and swept as on disk; the credentials are nowhere in the lake's own files."""
    lake = new_lake(
        lake_url=f"s3://{BUCKET}/lakes/all",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        aws_region="us-east-1",
        aws_endpoint_url=object_storage,
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
        assert table.metadata_location.startswith(f"s3://{BUCKET}/lakes/all/")
        for dataset in DATASETS:
            assert SECRET not in opened.catalog.load_table(("lake", dataset.name)).metadata.model_dump_json()
        # nothing is old enough, then everything is: what the snapshots need stays
        assert tables.sweep(opened.catalog, "job_facts", datetime(2020, 1, 1, tzinfo=UTC)) == 0
        tables.sweep(opened.catalog, "job_facts", datetime(2100, 1, 1, tzinfo=UTC))
        assert differences(analytics, opened) == []
        for snapshot in table.snapshots():
            assert table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows == 2
