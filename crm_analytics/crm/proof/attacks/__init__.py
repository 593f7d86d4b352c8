"""Attacks the CRM's guards for real, on a scratch database, each rolled back; never run them against production.

An attack tries to get past a guard and raises `Breach` when it succeeds, or when something that must work does not.
"""

from crm_analytics.crm.proof.attacks import calls, constraints, functions, legitimate, roles, tables
from crm_analytics.crm.proof.attacks.lab import ATTACKS, Attack, Breach, Lab, Outcome
from crm_analytics.crm.proof.attacks.run import run_all, run_on_scratch_server
from crm_analytics.crm.proof.attacks.sample import prepare

__all__ = [
    "ATTACKS",
    "Attack",
    "Breach",
    "Lab",
    "Outcome",
    "calls",
    "constraints",
    "functions",
    "legitimate",
    "prepare",
    "roles",
    "run_all",
    "run_on_scratch_server",
    "tables",
]
