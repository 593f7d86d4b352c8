"""Loads 2,000 damaged files, 10,000 in `make fuzz`: each is refused or adds up in the ledger, without a traceback."""

from __future__ import annotations

import os

import pytest

from crm_analytics.analytics.ingest.loading.results import describe
from crm_analytics_tests.analytics.ingest.damage import damaged_export, damaged_workbook
from crm_analytics_tests.analytics.ingest.landing_folder import Landing
from crm_analytics_tests.analytics.ingest.samples import SAMPLES
from crm_analytics_tests.chance import TIMES, generator

EACH = 2002 // len(SAMPLES) * TIMES
#: One of so many files is a workbook.
WORKBOOKS = 8


@pytest.mark.random
@pytest.mark.parametrize("source", SAMPLES)
def test_damaged_files(source: str, landing: Landing) -> None:
    """A damaged export never ends a run, and none of its records vanishes uncounted."""
    rng = generator(source)
    paths = []
    for number in range(EACH):
        if number % WORKBOOKS:
            path = landing.write(f"{source}/{number}.csv", damaged_export(source, rng, 2))
        else:
            path = landing.write(f"{source}/{number}.xlsx", damaged_workbook(source, rng))
        moment = 1_766_080_000 + 600 * number
        os.utime(path, (moment, moment))
        paths.append(path)
    late = set(rng.sample(paths[-60:], 30))
    for path in late:
        # Not there yet: hidden files are ignored.
        path.rename(path.with_name(f".{path.name}"))
    files = landing.load(source).files
    for path in late:
        path.with_name(f".{path.name}").rename(path)
    files += landing.load(source).files

    assert len(files) == EACH
    assert {file.status for file in files} <= {"loaded", "refused", "same_content"}
    for file in files:
        if file.status == "refused":
            assert file.message
            assert describe(file) == f"refused: {file.path}: {file.message}"
            assert "rejected by the database" not in file.message
    loaded = [file for file in files if file.status == "loaded"]
    # Otherwise the damage would be too strong or too weak.
    assert 0 < len(loaded) < EACH
    # The ledger's own CHECK adds the counts up; this compares them with the tables.
    assert landing.rows("SELECT count(*), sum(records_read), sum(quarantined) FROM raw.source_files") == [
        (
            EACH,
            sum(file.counts.records_read for file in loaded),
            landing.rows("SELECT count(*) FROM raw.rejected_rows")[0][0],
        )
    ]
    assert landing.load(source).files == []
    # Google's months are replaced, and jobs known by number get their UUID.
    if source not in ("google_spend", "jobs"):
        table = "analytics.targets" if source == "targets" else f"raw.{source}"
        ((rows,),) = landing.rows(f"SELECT count(*) FROM {table}")
        assert rows == sum(file.counts.inserted for file in loaded) > 0
