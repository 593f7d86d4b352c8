"""Tier D as Dagster runs it: a throwaway server, every attack, nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from crm_analytics.crm.proof import attacks
from crm_analytics_tests.conftest import PG_VERSION


def test_every_attack_is_tried_on_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, tier D could fail to start its server where it is deployed, or leave servers running."""
    with tempfile.TemporaryDirectory(prefix="t_") as folder:  # a short path: sockets have a limit
        monkeypatch.setattr(tempfile, "tempdir", folder)
        outcomes = attacks.run_on_scratch_server(PG_VERSION)
        assert list(Path(folder).glob("crm_scratch_*")) == []
    assert [outcome.attack.name for outcome in outcomes] == list(attacks.ATTACKS)
    assert [f"{outcome.attack.name}: {outcome.detail}" for outcome in outcomes if not outcome.held] == []


def test_an_attack_that_cannot_be_tried_has_not_been_held() -> None:
    """Without it, a misspelt table in an attack would count as a guard that holds."""
    with attacks.scratch_database(PG_VERSION) as connection:
        lab = attacks.prepare(connection)
        broken = attacks.Attack("x", "x", "", (), lambda lab: lab.run("SELECT FROM public.no_such_table"))
        outcome = lab.try_(broken)
        assert not outcome.held
        assert "could not be tried" in outcome.detail
        allowed = attacks.Attack("y", "y", "", (), lambda lab: lab.refused(["SELECT 1"]))
        assert "succeeded" in lab.try_(allowed).detail
