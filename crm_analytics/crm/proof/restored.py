"""Verifies a CRM database that was restored: catalog, rows, seals and positions, and what was published elsewhere.

`Published` is what leaves the database with each seal (Dagster's metadata, `crm-analytics crm seal`): the head of the
chain and the register of erasures. A backup is older than both. The seals after it are lost with their rows, which is
reported; erased data is back, so the erasures that are missing run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import psycopg

from crm_analytics.core.wording import counted
from crm_analytics.crm.errors import CrmError
from crm_analytics.crm.proof import invariants
from crm_analytics.crm.proof.audit_seals import head_is_in_chain
from crm_analytics.crm.rpc_methods import CrmClient
from crm_analytics.crm.schema.drift import drift

#: The reason of an erasure that runs again.
REPEATED = "repeated after a restore"


@dataclass(frozen=True)
class Erasure:
    """One entry of the register of erasures."""

    customer_id: str
    actor_id: str
    erased_at: str


@dataclass(frozen=True)
class Published:
    """What was published with a seal."""

    head: str | None
    last_position: int
    erasures: tuple[Erasure, ...]

    def to_json(self) -> str:
        """Returns the text to keep elsewhere."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Published:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: if the text is not that.
        """
        try:
            content = json.loads(text)
            return cls(
                content["head"],
                int(content["last_position"]),
                tuple(Erasure(**erasure) for erasure in content["erasures"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not what `crm-analytics crm seal` prints: {error!r}") from error


def published(connection: psycopg.Connection[Any]) -> Published:
    """Reads what is to be published now: the head of the chain, and the register of erasures."""
    seal = connection.execute(
        "SELECT hash, last_position FROM public.audit_seals ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    erasures = connection.execute(
        """
        SELECT customer_id::text, actor_id::text, to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
        FROM public.customer_erasures ORDER BY id
        """
    ).fetchall()
    head, last_position = seal or (None, 0)
    return Published(head, last_position, tuple(Erasure(*row) for row in erasures))


@dataclass(frozen=True)
class Finding:
    """What one part of the verification found; `problems` are sentences, empty if all is well."""

    what: str
    summary: str
    problems: tuple[str, ...] = ()


def verify(connection: psycopg.Connection[Any], elsewhere: Published | None) -> Iterator[Finding]:
    """Verifies a restored database, read-only, as its owner; yields one finding per part.

    Args:
        connection: in autocommit.
        elsewhere: what was published last; without it only the database itself can be verified.
    """
    yield Finding("drift", "the catalog equals the manifest", drift(connection).problems)

    results = invariants.check(connection)
    broken = [
        f"{name}: {result.invariant.rule}: {counted(result.offenders, 'row')}, {'; '.join(result.examples)}"
        for name, result in results.items()
        if not result.holds
    ]
    yield Finding("invariants", f"{counted(len(results), 'invariant')} hold", tuple(broken))

    row = connection.execute(
        """
        SELECT (SELECT count(*) FROM public.audit_seals), (SELECT count(*) FROM public.audit_positions),
            (SELECT count(*) FROM public.audit_log l
             WHERE NOT EXISTS (SELECT FROM public.audit_positions p WHERE p.audit_id = l.id)),
            (SELECT array_agg(format('seal %s: %s', seq, problem)) FROM crm_private.broken_seals())
        """
    ).fetchone()
    assert row is not None
    seals, positions, waiting, torn = row
    yield Finding(
        "seals and positions",
        f"{counted(seals, 'seal')}, {counted(positions, 'position')}, {counted(waiting, 'audit row')} to number",
        tuple(torn or ()),
    )

    if elsewhere is None:
        yield Finding(
            "published", "nothing to compare with", ("give what was published last: --published FILE",)
        )
        return
    lost = []
    if elsewhere.head is not None and not head_is_in_chain(connection, elsewhere.head):
        lost.append(
            f"the published head {elsewhere.head} (position {elsewhere.last_position}) is not in the chain: the backup "
            f"is older than it, and what was written up to it is lost, or audit_seals was rewritten. After a known "
            "restore, materialize crm/audit_seals, which publishes the new head"
        )
    yield Finding("published head", "the published head is in the chain", tuple(lost))
    missing = missing_erasures(connection, elsewhere)
    yield Finding(
        "erasures",
        f"{counted(len(elsewhere.erasures), 'published erasure')}, none is missing",
        tuple(
            f"customer {e.customer_id}, erased {e.erased_at}: the data is back. Repeat the erasure: "
            "crm-analytics crm verify-restore --repeat-erasures"
            for e in missing
        ),
    )


def missing_erasures(connection: psycopg.Connection[Any], elsewhere: Published) -> list[Erasure]:
    """Returns the last published erasure of each customer of this database who was not erased at that time or later."""
    last = {erasure.customer_id: erasure for erasure in elsewhere.erasures}
    missing = connection.execute(
        """
        SELECT x.customer FROM unnest(%s::uuid[], %s::timestamptz[]) AS x (customer, erased_at)
        JOIN public.customers c ON c.id = x.customer
        WHERE NOT EXISTS (
            SELECT FROM public.customer_erasures r WHERE r.customer_id = x.customer AND r.created_at >= x.erased_at)
        """,
        [list(last), [erasure.erased_at for erasure in last.values()]],
    ).fetchall()
    return [last[str(customer)] for (customer,) in missing]


def repeat_erasures(
    connection: psycopg.Connection[Any], elsewhere: Published, report: Callable[[str], None]
) -> bool:
    """Erases again what the published register has and this database has not, in the same admins' names.

    Returns:
        Whether all of them succeeded.
    """
    client, done = CrmClient(connection), True
    for erasure in missing_erasures(connection, elsewhere):
        customer = UUID(erasure.customer_id)
        try:
            client.erase_customer_safe(customer_id=customer, user_id=UUID(erasure.actor_id), reason=REPEATED)
        except CrmError as refused:
            done = False
            report(f"customer {customer} could not be erased: {refused}")
        else:
            report(f"customer {customer} is erased again")
    return done
