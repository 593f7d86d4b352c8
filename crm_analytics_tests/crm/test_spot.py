"""The lint over the CRM's functions: what it must find, and what it may leave."""

from __future__ import annotations

import pytest

from crm_analytics_tests.crm.spot import as_called, findings

HELPER = """CREATE FUNCTION crm_private.twice(p_amount numeric) RETURNS numeric
LANGUAGE sql IMMUTABLE
AS $$ SELECT p_amount + p_amount $$;
"""
REASON = "-- No search_path: only RPCs call it.\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (HELPER, "PS005"),
        (HELPER + REASON, "PS005"),
        (REASON + HELPER.replace("IMMUTABLE", "IMMUTABLE SECURITY DEFINER"), "PS003"),
        (REASON + HELPER.replace("IMMUTABLE", "IMMUTABLE SET search_path = public"), "PS005"),
        (
            REASON
            + HELPER.replace("IMMUTABLE", "SECURITY DEFINER")
            .replace("AS $$", "BEGIN ATOMIC\n")
            .replace("$$;", ";\nEND;"),
            "",
        ),
        ("CREATE SCHEMA IF NOT EXISTS crm_private;", "PS010"),
        (REASON + "CREATE OR REPLACE" + HELPER.removeprefix("CREATE"), "PS002"),
    ],
)
def test_open_search_path_is_found(text: str, code: str) -> None:
    """A function without a search_path needs a reason before it; one that runs as its owner gets none at all."""
    assert any(code in finding for finding in findings({"file.sql": text}))


def test_plain_function_with_a_reason_is_read_as_its_callers_run_it() -> None:
    """A reason before a function excuses its missing search_path, and nothing else."""
    assert list(findings({"file.sql": REASON + HELPER})) == []
    assert as_called(HELPER) == HELPER


def test_function_that_assigns_to_a_rows_field_is_read_to_its_end() -> None:
    """What pgspot cannot parse counts as a finding; a row's field is no reason not to parse."""
    text = """CREATE FUNCTION crm_private.moved() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_order public.orders;
BEGIN
    v_order.status := 'paid';
END
$$;
"""
    assert list(findings({"file.sql": text})) == []
    assert list(findings({"file.sql": text.replace("v_order.status", "p_order.status")}))
