"""Settings that any caller may change for their session, which must not change what the RPCs do."""

from __future__ import annotations

import re
from uuid import UUID

import psycopg
import pytest

from crm_analytics.crm import CrmClient, CrmResult, Invalid
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, pay, rows, value

pytestmark = pytest.mark.rolled_back


def test_standard_conforming_strings_off(
    crm_url: str, crm: Connection, order: CrmResult, manager: UUID, admin: UUID
) -> None:
    """A session that reads backslashes differently finds the same references; otherwise it would book one twice."""
    with psycopg.connect(
        crm_url, autocommit=True, options="-c standard_conforming_strings=off"
    ) as connection:
        connection.execute("SET ROLE crm_app")
        assert value(connection, "SHOW standard_conforming_strings") == "off"
        client = CrmClient(connection)
        first = pay(client, order, manager, 10, "REF-1", method="card")
        assert pay(client, order, manager, 10, " \t\nREF-1 ", method="card").id == first.id
        with pytest.raises(Invalid) as refused:
            pay(client, order, manager, 10, "   ", method="card")
        assert refused.value.detail["field"] == "p_external_reference"
        people = [
            client.create_lead_safe(source="s", full_name="s. Ross", phone=phone).data["customer_id"]
            for phone in ("8 (912) 555-01-00", "+7 912 555 01 00", "007 912 555 01 00")
        ]
        assert len(set(people)) == 1
        with pytest.raises(Invalid):
            client.create_lead_safe(source="s", full_name="n", email="no address@example.com")
        client.create_user_safe(name="s", email="ross@sss.example", role="manager", user_id=admin)
    assert value(crm, "SELECT full_name FROM public.customers WHERE id = %s", people[0]) == "s. Ross"
    assert value(crm, "SELECT email FROM public.users WHERE name = 's'") == "ross@sss.example"
    # What another session computes is what the index holds.
    crm.execute("SET enable_seqscan = off")
    assert value(
        crm,
        "SELECT count(*) FROM public.customers WHERE crm_private.phone_digits(phone) = '79125550100'",
    )


def test_no_literal_depends_on_a_setting(crm: Connection) -> None:
    """No function has a backslash in a plain literal, whose meaning would depend on the session."""
    bodies = rows(
        crm,
        "SELECT oid::regprocedure::text, prosrc FROM pg_proc"
        " WHERE pronamespace IN ('public'::regnamespace, 'crm_private'::regnamespace)",
    )
    assert len(bodies) > 40
    escaped = re.compile(r"\bE'(?:[^'\\]|\\.|'')*'")
    assert [name for name, body in bodies if "\\" in escaped.sub("", body)] == []


def test_invariants_with_standard_conforming_strings_off(
    crm_url: str, client: CrmClient, order: CrmResult, manager: UUID
) -> None:
    """The invariants hold in a session with that setting; references would otherwise lose letters and turn checks red."""
    pay(client, order, manager, 10, "s-1-s")
    with psycopg.connect(
        crm_url, autocommit=True, options="-c standard_conforming_strings=off"
    ) as connection:
        assert broken_invariants(connection) == {}
