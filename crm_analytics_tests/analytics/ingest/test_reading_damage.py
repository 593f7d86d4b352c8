"""Reads damaged files: each is refused clearly or its counts add up; nothing else is raised."""

from __future__ import annotations

from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading import csv_records
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics_tests.analytics.ingest.damage import damaged_export, damaged_workbook
from crm_analytics_tests.analytics.ingest.landing_folder import local_file
from crm_analytics_tests.analytics.ingest.samples import SAMPLES, read
from crm_analytics_tests.chance import TIMES, generator

CSV_FILES = 1720
WORKBOOKS = 280


def _survives(path: Path, source: str) -> bool:
    try:
        detect_source(local_file(path, path.parent))
    except RefusedFile as error:
        assert str(error).startswith(path.name)
    try:
        # Asserts that the counts add up.
        read(path, source)
    except RefusedFile as error:
        assert str(error).startswith(path.name)
        assert len(str(error)) < 2000
        return False
    return True


@pytest.mark.random
@pytest.mark.parametrize("part", range(4))
def test_damaged_csv_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int):
    """Damaged CSV files are refused or add up: another exception would end a run over all files."""
    # With small pieces, these small files cross the borders of pieces.
    monkeypatch.setattr(csv_records, "PIECE", 300)
    monkeypatch.setattr("crm_analytics.analytics.ingest.reading.encoding.BLOCK", 97)
    rng = generator(part)
    files = CSV_FILES // 4 * TIMES
    read_through = 0
    for number in range(files):
        source = rng.choice(list(SAMPLES))
        path = tmp_path / f"x{number}.csv"
        path.write_bytes(damaged_export(source, rng, 3))
        read_through += _survives(path, source)
    # Otherwise the damage would be too strong or too weak.
    assert 0 < read_through < files


@pytest.mark.random
def test_damaged_workbooks(tmp_path: Path):
    """Damaged workbooks are refused or add up, though the library raises many kinds of errors for them."""
    rng = generator("workbooks")
    for number in range(WORKBOOKS * TIMES):
        source = rng.choice(list(SAMPLES))
        path = tmp_path / f"x{number}.xlsx"
        path.write_bytes(damaged_workbook(source, rng))
        _survives(path, source)
