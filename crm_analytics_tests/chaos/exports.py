"""The landing folder at two moments: exports come in any order, some late, some corrected, some damaged."""

from __future__ import annotations

import os
import shutil
import zlib
from datetime import date, timedelta
from pathlib import Path

from crm_analytics.demo.sample_exports import write_landing

#: The last day of the sample, so that every run has the same exports.
UNTIL = date(2025, 6, 20)


def write_stages(folder: Path, months: int, jobs: int) -> list[Path]:
    """Writes two landing folders: what has arrived at first, and later; returns them.

    The second has all files. Which of them come first has nothing to do with their export times, so payments wait for
    jobs, and older exports come after newer ones. The sample plants quarantined records, repeats, moved jobs,
    credited leads and a refused file; this adds two large exports, a file that gets longer, a copy and a file that no
    source recognizes.
    """
    early, late = folder / "landing_1", folder / "landing_2"
    summary = write_landing(late, months, UNTIL)
    growing = min(
        (path for path in summary.files if path.parent.name == "payments"), key=lambda path: path.name
    )
    for path in sorted(summary.files):
        name = path.relative_to(late)
        if path == growing or zlib.crc32(str(name).encode()) % 2:
            (early / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, early / name)
    lines = growing.read_bytes().splitlines(keepends=True)
    _write(
        early / growing.relative_to(late), b"".join(lines[: len(lines) // 2]), growing.stat().st_mtime - 3600
    )
    copied = max((path for path in summary.files if path.parent.name == "jobs"), key=lambda path: path.name)
    shutil.copy2(copied, copied.with_name(f"copy of {copied.name}"))
    _write(late / "minutes.csv", b"who,what\nAnn,talked\n", growing.stat().st_mtime)
    for stage in (early, late):
        _write(
            stage / "payments" / "payments_2025-06-21T05_04_11.706Z.csv",
            _payments(jobs),
            growing.stat().st_mtime,
        )
    _write(late / "jobs" / "export_export_2025-06-21T05_04_11.706Z.csv", _jobs(jobs), growing.stat().st_mtime)
    return [early, late]


def _jobs(count: int) -> bytes:
    """Returns a large export of jobs, for loads and refreshes that take a while within one transaction."""
    lines = ["UUID,Job #,Job Type,Source,Status,Created,Total"]
    types, sources = ("COD Service", "INS Service", "COD Repair"), ("Google", "eLocals", "Rely", "Thumbtack")
    lines += [
        f"B{n:07},{500_000 + n},{types[n % 3]},{sources[n % 4]},Done,{_day(n)},{n % 700}.50"
        for n in range(count)
    ]
    return "\r\n".join(lines).encode()


def _payments(jobs: int) -> bytes:
    """Returns the payments for them, which come before them."""
    lines = ["Payment ID,Job #,Status,Amount,Date"]
    lines += [
        f"PB{n:07},{500_000 + n * 2 // 3},Paid,{20 + n % 400}.{10 + n % 90},{_day(n * 2 // 3)}"
        for n in range(jobs * 3 // 2)
    ]
    return "\r\n".join(lines).encode()


def _day(n: int) -> str:
    return f"{UNTIL - timedelta(n % 90):%a %b %d %Y}"


def _write(path: Path, content: bytes, modified: float) -> None:
    path.write_bytes(content)
    os.utime(path, (modified, modified))
