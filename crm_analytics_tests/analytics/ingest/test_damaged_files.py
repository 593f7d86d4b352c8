"""Loads 2,000 damaged files, 10,000 in `make fuzz`: each is refused or adds up in the ledger, without a traceback."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable

import pytest

from crm_analytics.analytics.ingest.loading.results import describe
from crm_analytics_tests.analytics.ingest.damage import damaged_export, damaged_workbook
from crm_analytics_tests.analytics.ingest.landing_folder import Landing
from crm_analytics_tests.analytics.ingest.samples import SAMPLES, workbook_bytes
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


def _rewritten(content: bytes, types: Callable[[bytes], bytes] = bytes) -> bytes:
    """Returns the archive with its list of types, changed, as the first part."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(result, "w") as copy:
        for name in sorted(archive.namelist(), key=lambda name: "Types" not in name):
            part = archive.read(name)
            copy.writestr(name, types(part) if "Types" in name else part)
    return result.getvalue()


def _without_a_workbook(content: bytes) -> bytes:
    return _rewritten(content, lambda types: types.replace(b"sheet.main+xml", b"other+xml"))


def _without_bytes_of_its_first_part(content: bytes) -> bytes:
    """The directory at the end then places the first part before the file begins."""
    whole = _rewritten(content)
    return whole[:40] + whole[45:]


def _without_bytes_in_the_middle(content: bytes) -> bytes:
    return content[:1000] + content[1005:]


@pytest.mark.parametrize(
    "damage", [_without_a_workbook, _without_bytes_of_its_first_part, _without_bytes_in_the_middle]
)
def test_damaged_workbook_is_refused_for_good(damage: Callable[[bytes], bytes], landing: Landing) -> None:
    """Damage is in the content, whatever the library raises for it: the file isn't read again at every run."""
    whole = workbook_bytes([("Unique ID", "Time", "Cost"), ("A", "2025-10-04 10:00:00", "5")])
    landing.write("elocals_leads/leads.xlsx", damage(whole))
    refused = landing.load_one("elocals_leads")
    assert refused.status == "refused" and refused.file_id is not None, refused.message
    assert landing.load("elocals_leads").files == []
