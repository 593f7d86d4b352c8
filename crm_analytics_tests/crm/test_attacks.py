"""The attacks, run as Dagster runs them: on a throwaway server, every one of them, with nothing left behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from crm_analytics.crm.proof import attacks
from crm_analytics.crm.schema.catalog import RPC_NAMES
from crm_analytics.crm.schema.manifest import GUARDS
from crm_analytics_tests.conftest import PG_VERSION
from crm_analytics_tests.crm.conftest import Connection


def test_every_attack_is_tried_on_a_server_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attack runs and is held, and the server is removed; a deployment might not be able to start one."""
    with tempfile.TemporaryDirectory(prefix="t_") as folder:  # a short path: sockets have a limit
        monkeypatch.setattr(tempfile, "tempdir", folder)
        outcomes = attacks.run_on_scratch_server(PG_VERSION)
        assert list(Path(folder).glob("crm_scratch_*")) == []
    assert [outcome.attack.name for outcome in outcomes] == list(attacks.ATTACKS)
    assert [f"{outcome.attack.name}: {outcome.detail}" for outcome in outcomes if not outcome.held] == []


def test_an_attack_that_cannot_be_tried_is_not_held(crm: Connection) -> None:
    """An attack that ends with another error is reported; a misspelled table would otherwise count as a guard."""
    lab = attacks.prepare(crm)
    broken = attacks.Attack("x", "x", "", (), lambda lab: lab.run("SELECT FROM public.no_such_table"))
    outcome = lab.try_(broken)
    assert not outcome.held
    assert "could not be tried" in outcome.detail
    allowed = attacks.Attack("y", "y", "", (), lambda lab: lab.refused(["SELECT 1"]))
    assert "succeeded" in lab.try_(allowed).detail


def test_attacks_name_known_guards_and_reach_all_that_can_be_attacked() -> None:
    """Every attack exercises known guards, and every guard but those without an attack is exercised."""
    exercised = {guard for attack in attacks.ATTACKS.values() for guard in attack.guards}
    assert set(GUARDS) - exercised == {"settings", "views", "surface"}
    assert exercised <= set(GUARDS)


def test_a_working_day_calls_every_rpc() -> None:
    """The sequence that must work contains every RPC; a new one could otherwise be broken by a missing grant."""
    called = {call.partition("(")[0] for _, call in attacks.legitimate._DAY}
    assert called == set(RPC_NAMES)
