"""Runs attacks: in a lab, or on a throwaway server."""

from __future__ import annotations

from collections.abc import Iterable

from crm_analytics.crm.migrating.scratch_database import scratch_database
from crm_analytics.crm.proof.attacks.lab import ATTACKS, Lab, Outcome
from crm_analytics.crm.proof.attacks.sample import prepare


def run_all(lab: Lab, only: Iterable[str] | None = None) -> list[Outcome]:
    """Tries every attack (or those named) in the lab's database, which stays as it was."""
    return [lab.try_(ATTACKS[name]) for name in (ATTACKS if only is None else only)]


def run_on_scratch_server(version: int = 18, only: Iterable[str] | None = None) -> list[Outcome]:
    """Tries every attack (or those named) on a scratch database of a throwaway server."""
    with scratch_database(version) as connection:
        return run_all(prepare(connection), only)
