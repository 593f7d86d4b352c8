"""Every hint and comment names calls that exist: a remedy that cannot be followed is worse than none."""

from __future__ import annotations

import re

import pytest

from crm_analytics.crm.schema.catalog import READ_NAMES, RPC_NAMES
from crm_analytics_tests.crm.conftest import Connection, rows

#: Words that look like names of calls.
_NAMED = re.compile(r"\b(?:\w+_safe|resolve_crm_user|whoami|changes_after|find_\w+_by_\w+)\b")

#: Calls that are not for applications: the hourly job's.
_INTERNAL = {"seal_audit_safe"}


def texts(crm: Connection) -> dict[str, str]:
    """Returns the source and the comment of every function, without what is only called there."""
    return {
        name: re.sub(r"\bpublic\.\w+|\bcrm_private\.\w+", "", source) + (comment or "")
        for name, source, comment in rows(
            crm,
            "SELECT oid::regprocedure::text, prosrc, obj_description(oid, 'pg_proc') FROM pg_proc"
            " WHERE pronamespace IN ('public'::regnamespace, 'crm_private'::regnamespace)",
        )
    }


@pytest.mark.rolled_back
def test_every_call_that_a_hint_names_exists(crm: Connection) -> None:
    """A hint or comment names only RPCs, by their right names, so that whoever reads it can call them."""
    named = {(function, call) for function, text in texts(crm).items() for call in _NAMED.findall(text)}
    assert len({call for _, call in named}) > 8
    assert sorted((f, c) for f, c in named if c not in (*RPC_NAMES, *READ_NAMES) and c not in _INTERNAL) == []
