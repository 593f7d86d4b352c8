"""Reads damaged files: each is refused clearly or its counts add up; nothing else is raised."""

from __future__ import annotations

import io
import re
import zipfile
from datetime import datetime
from pathlib import Path
from random import Random

import pytest

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading import csv_records
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics_tests.analytics.ingest.damage import damage
from crm_analytics_tests.analytics.ingest.samples import SAMPLES, read, workbook_bytes

CSV_FILES = 1720
WORKBOOKS = 280


def _survives(path: Path, source: str) -> bool:
    try:
        detect_source(path, path.parent)
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


@pytest.mark.parametrize("seed", range(4))
def test_damaged_csv_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int):
    """Damaged CSV files are refused or add up: another exception would end a run over all files."""
    # With small pieces, these small files cross the borders of pieces.
    monkeypatch.setattr(csv_records, "PIECE", 300)
    monkeypatch.setattr("crm_analytics.analytics.ingest.reading.encoding.BLOCK", 97)
    rng = Random(seed)
    read_through = 0
    for number in range(CSV_FILES // 4):
        source = rng.choice(list(SAMPLES))
        content = SAMPLES[source].encode()
        header, _, records = content.partition(b"\r\n")
        path = tmp_path / f"x{number}.csv"
        path.write_bytes(damage(header + b"\r\n" + records * 3, rng))
        read_through += _survives(path, source)
    # Otherwise the damage would be too strong or too weak.
    assert 0 < read_through < CSV_FILES // 4


def _damage_inside(content: bytes, rng: Random) -> bytes:
    """Damages one part of the archive, and packs a sound archive again."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        chosen = rng.choice([name for name in old.namelist() if "theme" not in name])
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, _damage_xml(part, rng) if name == chosen else part)
    return result.getvalue()


def _damage_xml(part: bytes, rng: Random) -> bytes:
    """Damages a part; half of the time the XML stays well formed, with other values in attributes and cells."""
    if rng.random() < 0.5:
        return damage(part, rng)
    values = list(re.finditer(rb'(?<=")[^"<>]*(?=")|(?<=>)[^<>]+(?=<)', part))
    for match in reversed(rng.sample(values, min(3, len(values)))):
        part = part[: match.start()] + rng.choice(VALUES) + part[match.end() :]
    return part


VALUES = (
    b"", b"0", b"-1", b"1e308", b"99999999999", b"XFD1048576", b"ZZZ1", b"A99999999", b"n", b"d", b"s", b"e", b"b",
    b"_x0000_", b"_xD800_", b"NaN", b"2025-13-45T00:00:00", b"hidden",
)  # fmt: skip


def test_damaged_workbooks(tmp_path: Path):
    """Damaged workbooks are refused or add up, though the library raises many kinds of errors for them."""
    rng = Random(7)
    contents = {
        source: workbook_bytes([_cells(line) for line in text.splitlines()])
        for source, text in SAMPLES.items()
    }
    for number in range(WORKBOOKS):
        source = rng.choice(list(contents))
        path = tmp_path / f"x{number}.xlsx"
        path.write_bytes(rng.choice((damage, _damage_inside, _damage_inside))(contents[source], rng))
        _survives(path, source)


def _cells(line: str) -> list[object]:
    """Makes some of the cells numbers and dates, as in real workbooks."""
    cells: list[object] = []
    for cell in line.split(","):
        try:
            cells.append(float(cell))
        except ValueError:
            cells.append(datetime(2025, 12, 19, 10, 30) if cell.startswith("2025-12-19") else cell)
    return cells
