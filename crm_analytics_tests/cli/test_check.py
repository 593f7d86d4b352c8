"""`crm-analytics check`: what it prints of good, bad and refused files."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from crm_analytics.cli.check import check_files
from crm_analytics_tests.analytics.ingest.landing_folder import ELOCALS, JOBS, NEW_YORK, job, text


def _printed(*paths: Path) -> tuple[bool, str]:
    target = io.StringIO()
    good = check_files(paths, console=Console(file=target, width=200), timezone=NEW_YORK)
    return good, target.getvalue()


def test_quarantined_records_are_printed_with_their_reasons(tmp_path: Path):
    """The command names source, columns, months and each bad record, so that a person can correct the export."""
    path = tmp_path / "leads cost Elocals October.csv"
    rows = [("A", "10"), ("A", "11"), ("B", "1.234,50"), ("C", "5")]
    path.write_text(
        text(ELOCALS, [(lead, "2025-02-05 10:21:17 -0500", "01:10", cost, "ok", "") for lead, cost in rows])
    )
    good, printed = _printed(path)
    assert good
    for expected in ("elocals_leads", "lead_id", "Unique ID", "2025-02 (1)", "conflicting records"):
        assert expected in printed
    (line,) = [line for line in printed.splitlines() if "1.234,50" in line]
    assert line.split()[:3] == ["3", "4", "B"]
    assert 'Cost "1.234,50": ambiguous decimal separator; accepted: ' in line


def test_refused_file_fails_the_command(tmp_path: Path):
    """One file that cannot be loaded makes the command fail, and the others are still checked."""
    bad, good = tmp_path / "elocals.csv", tmp_path / "jobs.csv"
    bad.write_text("Unique ID,Cost\nA,1\n")
    good.write_text(text(JOBS, [job(1, "AAAAAA")]))
    fine, printed = _printed(bad, good)
    assert not fine
    assert "would be refused" in printed and "lead_at" in printed and "source jobs" in printed
