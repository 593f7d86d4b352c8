"""A small share of `make chaos`, with a fixed seed."""

from __future__ import annotations

from pathlib import Path

from crm_analytics_tests.chaos.lab import WAYS, Hit, Lab
from crm_analytics_tests.chaos.rounds import plan, run
from crm_analytics_tests.conftest import PG_VERSION

SEED = 1


def test_killed_work_ends_as_undisturbed_work(tmp_path: Path) -> None:
    """Whatever is killed, and whenever: the next start completes the work, and every table is as without the kill."""
    lab = Lab(tmp_path / "lab", PG_VERSION, months=2, jobs=3_000)
    try:
        lab.measure(WAYS[1])
        hits: list[Hit] = []
        while sum(hit.counts for hit in hits) < 4:
            hits += run(lab, plan(SEED, len(hits), [WAYS[1]]))
    finally:
        lab.close()
