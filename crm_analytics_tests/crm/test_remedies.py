"""Remedies keep the data: after each, the drift check is clean, the invariants hold, and a working day runs.

A remedy may turn the check green and break the data: the missing label added, while the orders stay in the renamed one.
`make test` takes a sample of all drifts; `CRM_ALL_REMEDIES=1 pytest crm_analytics_tests/crm/test_remedies.py` takes all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from crm_analytics.crm.proof import attacks
from crm_analytics.crm.proof.attacks.legitimate import work_a_day
from crm_analytics.crm.schema import manifest
from crm_analytics_tests import chance
from crm_analytics_tests.conftest import PG_VERSION
from crm_analytics_tests.crm.conftest import broken_invariants, run_repairs
from crm_analytics_tests.crm.test_guard_mutation import GROUPS, Mutation, _or_replace

ALL = bool(os.environ.get("CRM_ALL_REMEDIES"))
#: How many of a group `make test` takes.
SAMPLE = 4


def renames() -> Iterator[Mutation]:
    """Every object of the manifest under another name."""
    for key, facts in manifest.expected().objects.items():
        kind, name = key.split(" ", 1)
        parent = facts.get("parent", "").partition(" ")[2]
        short = name.removeprefix(f"{parent}.")
        statement = {
            "label": "ALTER TYPE {parent} RENAME VALUE {label} TO 'renamed'",
            "column": "ALTER TABLE {parent} RENAME COLUMN {short} TO renamed",
            "constraint": "ALTER TABLE {parent} RENAME CONSTRAINT {short} TO renamed",
            "index": "ALTER INDEX {schema}.{short} RENAME TO renamed",
            "trigger": "ALTER TRIGGER {short} ON {parent} RENAME TO renamed",
            "policy": "ALTER POLICY {short} ON {parent} RENAME TO renamed",
            "table": "ALTER TABLE {name} RENAME TO renamed",
            "type": "ALTER TYPE {name} RENAME TO renamed",
            "view": "ALTER VIEW {name} RENAME TO renamed",
            "function": "ALTER ROUTINE {name} RENAME TO renamed",
        }.get(kind)
        if statement is None:
            continue
        _, quote, label = name.partition(" '")
        sql = statement.format(
            parent=parent,
            short=short,
            name=name,
            schema=parent.partition(".")[0],
            label=f"'{label}" if quote else "",
        )
        yield Mutation(f"renamed {kind}", f"{name} renamed", sql, key)
    yield Mutation(
        "renamed sequence",
        "crm_private.order_code_seq renamed",
        "ALTER SEQUENCE crm_private.order_code_seq RENAME TO renamed",
        "sequence crm_private.order_code_seq",
    )
    yield Mutation(
        "renamed table",
        "public.payments in another schema",
        "CREATE SCHEMA archive; ALTER TABLE public.payments SET SCHEMA archive",
        "table public.payments",
    )


def drifts() -> list[Mutation]:
    """Returns every mutant of the kill table and every rename, or the sample of them."""
    groups: dict[str, list[Mutation]] = {}
    for mutations in (*(make() for make in GROUPS.values()), renames()):
        for mutation in mutations:
            if mutation.since <= PG_VERSION:
                groups.setdefault(mutation.group, []).append(mutation)
    if ALL:
        return [mutation for group in groups.values() for mutation in group]
    dice = chance.generator("remedies")
    return [m for group in groups.values() for m in dice.sample(group, min(SAMPLE, len(group)))]


@pytest.mark.random
@pytest.mark.parametrize("mutation", drifts(), ids=lambda m: m.what)
def test_a_remedy_leaves_a_crm_that_works(lab: attacks.Lab, mutation: Mutation) -> None:
    """Remedy, then drift check, invariants and a working day: a green light over broken data is worse than a red one."""
    with lab.connection.transaction(force_rollback=True):
        lab.connection.execute(_or_replace(mutation.sql))
        found = manifest.compare(lab.connection).differences
        assert found
        run_repairs(lab.connection, found)
        with lab.role("crm_app"):
            work_a_day(lab)
        assert broken_invariants(lab.connection) == {}


RENAMED_DATA = (
    ("ALTER TYPE public.order_status_enum RENAME VALUE 'created' TO 'neu'", "ALTER TYPE public.order_status_enum RENAME VALUE 'neu' TO 'created';"),
    ("ALTER TYPE public.currency_enum RENAME VALUE 'EUR' TO 'euro'", "ALTER TYPE public.currency_enum RENAME VALUE 'euro' TO 'EUR';"),
    ("ALTER TABLE public.orders RENAME total_amount TO total", "ALTER TABLE public.orders RENAME COLUMN total TO total_amount;"),
    ("ALTER TABLE public.payments RENAME TO payments_old", "ALTER TABLE public.payments_old RENAME TO payments;"),
    ("ALTER TYPE public.currency_enum RENAME TO money", "ALTER TYPE public.money RENAME TO currency_enum;"),
    ("ALTER TABLE crm_private.idempotency_keys RENAME TO keys", "ALTER TABLE crm_private.keys RENAME TO idempotency_keys;"),
    ("ALTER TABLE public.payout_limits RENAME manager_limit TO \"50 %\"", "ALTER TABLE public.payout_limits RENAME COLUMN \"50 %\" TO manager_limit;"),
)  # fmt: skip


@pytest.mark.parametrize(("statement", "remedy"), RENAMED_DATA)
def test_renamed_data_gets_its_name_back(lab: attacks.Lab, statement: str, remedy: str) -> None:
    """What holds rows is renamed back, not added: orders would stay in a dead label, and money in a dead column."""
    with lab.connection.transaction(force_rollback=True):
        before = lab.connection.execute("SELECT to_jsonb(o) FROM public.orders o ORDER BY id").fetchall()
        lab.connection.execute(statement.encode())
        found = manifest.compare(lab.connection).differences
        executable = [line for d in found for line in d.repair.splitlines() if not line.startswith("--")]
        assert remedy in executable
        assert not [line for line in executable if " ADD COLUMN " in line or " ADD VALUE " in line]
        run_repairs(lab.connection, found)
        assert (
            lab.connection.execute("SELECT to_jsonb(o) FROM public.orders o ORDER BY id").fetchall() == before
        )


SEVERAL = (
    (
        "ALTER TYPE public.order_status_enum RENAME VALUE 'paid' TO 'bezahlt'; ALTER TYPE public.order_status_enum ADD VALUE 'parked'",
        ("-- ALTER TYPE public.order_status_enum RENAME VALUE 'bezahlt' TO 'paid';",
         "-- ALTER TYPE public.order_status_enum RENAME VALUE 'parked' TO 'paid';"),
    ),
    (
        "ALTER TABLE public.orders RENAME total_amount TO total; ALTER TABLE public.orders ADD COLUMN other numeric(12, 2)",
        ("-- ALTER TABLE public.orders RENAME COLUMN total TO total_amount;",
         "-- ALTER TABLE public.orders RENAME COLUMN other TO total_amount;"),
    ),
    (
        "ALTER TABLE public.orders RENAME total_amount TO total; ALTER TABLE public.orders ALTER total SET DEFAULT 0",
        ("-- ALTER TABLE public.orders RENAME COLUMN total TO total_amount;",),
    ),
)  # fmt: skip


@pytest.mark.parametrize(("statement", "choices"), SEVERAL)
def test_several_candidates_are_for_a_person_to_choose_from(
    lab: attacks.Lab, statement: str, choices: tuple[str, ...]
) -> None:
    """Where more than one object fits, or one that is not quite the same, the remedy runs nothing by itself."""
    with lab.connection.transaction(force_rollback=True):
        lab.connection.execute(statement.encode())
        found = manifest.compare(lab.connection).differences
        [missing] = [
            d for d in found if d.problem.endswith("is missing") and d.object.startswith(("label", "column"))
        ]
        for choice in choices:
            assert choice in missing.repair
        assert all(line.startswith("--") for line in missing.repair.splitlines())
