"""An application behind a pooler that works by transaction, as docs/crm.md tells it to be."""

from __future__ import annotations

from uuid import UUID

import psycopg
import pytest

from crm_analytics.crm import CrmClient, CrmResult
from crm_analytics_tests.crm.conftest import Connection, broken_invariants, pay, value
from crm_analytics_tests.pooler import pooled

#: More than psycopg repeats a statement before it prepares it.
CALLS = 8


@pytest.mark.parametrize("autocommit", [True, False])
def test_the_client_needs_no_session(
    crm_url: str, crm: Connection, order: CrmResult, manager: UUID, autocommit: bool
) -> None:
    """Calls of their own and several in a transaction work, although each transaction is another session's."""
    with (
        pooled(crm_url) as url,
        psycopg.connect(url, autocommit=autocommit, prepare_threshold=None) as connection,
    ):
        client = CrmClient(connection)
        for number in range(CALLS):
            pay(client, order, manager, 10, f"REF-{number}", method="card")
            connection.commit()
        with connection.transaction():
            for number in range(CALLS):
                pay(client, order, manager, 5, f"MORE-{number}", method="card")
    assert value(crm, "SELECT sum(amount) FROM public.payments WHERE order_id = %s", order.id) == 15 * CALLS
    assert not broken_invariants(crm)


def test_with_prepared_statements_it_fails(crm_url: str, order: CrmResult, manager: UUID) -> None:
    """Without the setting a call fails soon, and changes nothing: the page is right to ask for it."""
    with pooled(crm_url) as url, psycopg.connect(url, autocommit=True) as connection:
        client = CrmClient(connection)
        with pytest.raises(psycopg.errors.InvalidSqlStatementName):
            for number in range(4 * CALLS):
                pay(client, order, manager, 10, f"REF-{number}", method="card")
