"""Loads 2,000 damaged files: each is refused with a message or adds up in the ledger, without a traceback."""

from __future__ import annotations

import os
from random import Random

import pytest

from crm_analytics.analytics.ingest.loading.results import describe
from crm_analytics_tests.analytics.ingest.damage import damage
from crm_analytics_tests.analytics.ingest.landing_folder import Landing
from crm_analytics_tests.analytics.ingest.samples import SAMPLES

FILES = 2002
EACH = FILES // len(SAMPLES)


@pytest.mark.parametrize("source", SAMPLES)
def test_damaged_files(source: str, landing: Landing) -> None:
    """A damaged export never ends a run, and none of its records vanishes uncounted."""
    rng = Random(source)
    header, _, records = SAMPLES[source].encode().partition(b"\r\n")
    paths = []
    for number in range(EACH):
        path = landing.write(f"{source}/{number}.csv", damage(header + b"\r\n" + records * 2, rng))
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
