"""Generates docs/crm-rpc.md, the reference of the safe RPCs, from the catalog of a migrated database."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.crm.schema.manifest import RPC_NAMES

REFERENCE_FILE: Path = PROJECT_DIR / "docs" / "crm-rpc.md"

_USER = "00000000-0000-4000-8000-00000000000a"
_ORDER = "00000000-0000-4000-8000-00000000000b"
#: Example values by argument name; an argument without one is left out of the example.
_EXAMPLES: dict[str, Any] = {
    "p_provider": "auth0",
    "p_external_id": "auth0|5551234",
    "p_user_id": _USER,
    "p_created_by": _USER,
    "p_uploaded_by": _USER,
    "p_order_id": _ORDER,
    "p_customer_id": "00000000-0000-4000-8000-00000000000c",
    "p_lead_id": "00000000-0000-4000-8000-00000000000d",
    "p_payment_id": "00000000-0000-4000-8000-00000000000e",
    "p_task_id": "00000000-0000-4000-8000-00000000000f",
    "p_crm_user_id": "00000000-0000-4000-8000-000000000010",
    "p_source": "site",
    "p_full_name": "Ada Example",
    "p_name": "Ada Example",
    "p_email": "ada@example.com",
    "p_phone": "+1 202 555 0100",
    "p_items": [{"model": "Road 54", "quantity": 1}],
    "p_total_amount": "1850.00",
    "p_amount": "925.00",
    "p_currency": "EUR",
    "p_direction": "incoming",
    "p_method": "card",
    "p_external_reference": "psp-1001",
    "p_document_type": "invoice",
    "p_storage_url": "https://files.example.com/invoice.pdf",
    "p_title": "Call the client",
    "p_active": False,
    "p_completed": True,
    "p_tracking_number": "EX123456789",
    "p_commission_eur": "120.00",
    "p_notes": "prefers e-mail",
    "p_country": "US",
}
#: Where one argument name means different things.
_EXAMPLES_OF: dict[str, dict[str, Any]] = {
    "record_generic_payment_safe": {"p_role": "client_payment"},
    "create_user_safe": {"p_role": "manager"},
    "advance_lead_status_safe": {"p_new_status": "in_progress"},
    "advance_order_status_safe": {"p_new_status": "in_delivery"},
    "update_payment_status_safe": {"p_new_status": "completed"},
    "upsert_shipment_safe": {"p_provider": "cdek", "p_status": "shipped"},
}
#: Arguments with a default that an example shows all the same.
_WORTH_SHOWING = {
    "p_external_reference", "p_notes", "p_tracking_number", "p_provider", "p_status", "p_completed", "p_user_id",
    "p_phone", "p_order_id", "p_items", "p_total_amount", "p_currency", "p_country", "p_commission_eur",
}  # fmt: skip

_HEAD = """\
# Safe RPCs

Generated from the catalog by `crm-analytics crm reference`; a test keeps it equal. How the guards behind these
functions work stands in [crm.md](crm.md).

Every function returns one `jsonb` object with the `id` of the row concerned. Refusals carry an SQLSTATE that
PostgREST maps to an HTTP status, and a DETAIL of machine-readable JSON (`rule`, `field`, `found`, `accepted`):

| SQLSTATE | HTTP | meaning |
|---|---|---|
| `42501` | 403 | the actor is missing, unknown, inactive, or lacks the role |
| `PT422` | 422 | an argument is not acceptable, whatever the state of the data |
| `PT404` | 404 | a row that the call names does not exist |
| `PT409` | 409 | the state of the data does not allow it |

What identifies something (references, order and tracking numbers, e-mail addresses, phones, accounts) has at most 255
characters. `found` shows the first 200 characters of a long argument.

They are checked in this order: actor, input, existence, role, replay, state. A refused call changes nothing.
`p_user_id` is the caller's word, so only trusted servers hold the role `crm_app`.
"""


@dataclass(frozen=True)
class Argument:
    """One argument as the catalog has it."""

    name: str
    type: str
    optional: bool


@dataclass(frozen=True)
class Rpc:
    """One RPC as the catalog has it."""

    name: str
    arguments: tuple[Argument, ...]
    comment: str

    def example(self) -> dict[str, Any]:
        """Arguments of the example call."""
        own = _EXAMPLES_OF.get(self.name, {})
        shown = [a for a in self.arguments if not a.optional or a.name in _WORTH_SHOWING]
        return {
            a.name: own.get(a.name, _EXAMPLES.get(a.name))
            for a in shown
            if a.name in own or a.name in _EXAMPLES
        }

    def example_sql(self) -> str:
        """The example as SQL."""
        lines = ",\n".join(f"    {name} => {_literal(value)}" for name, value in self.example().items())
        return f"SELECT public.{self.name}(\n{lines}\n);"

    def example_request(self) -> str:
        """The example as a PostgREST request."""
        body = json.dumps(self.example(), indent=2)
        return f"POST /rpc/{self.name} HTTP/1.1\nContent-Type: application/json\n\n{body}"


def rpcs(connection: psycopg.Connection[Any]) -> list[Rpc]:
    """The RPCs of the connected database, in the order of crm.md.

    Raises:
        LookupError: if one of them is missing.
    """
    found = {}
    for name, arguments, comment in connection.execute(
        "SELECT p.proname, array_agg(ARRAY[a.name, format_type(a.type, NULL), (a.n > p.pronargs - p.pronargdefaults)::text]"
        " ORDER BY a.n), coalesce(obj_description(p.oid, 'pg_proc'), '')"
        " FROM pg_proc p, unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) WITH ORDINALITY AS a(name, type, n)"
        " WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (%s) GROUP BY p.oid, p.proname",
        [list(RPC_NAMES)],
    ):
        found[name] = Rpc(
            name, tuple(Argument(n, t, optional == "true") for n, t, optional in arguments), comment
        )
    missing = [name for name in RPC_NAMES if name not in found]
    if missing:
        raise LookupError(
            f"no function {', '.join(missing)} in schema public: run `crm-analytics migrate crm`"
        )
    return [found[name] for name in RPC_NAMES]


def page(connection: psycopg.Connection[Any]) -> str:
    """The text of docs/crm-rpc.md."""
    functions = rpcs(connection)
    contents = "\n".join(f"- [`{rpc.name}`](#{rpc.name})" for rpc in functions)
    return "\n".join([_HEAD, contents, "", *(_section(rpc) for rpc in functions)])


def _section(rpc: Rpc) -> str:
    rows = "\n".join(
        f"| `{argument.name}` | `{argument.type}` | {'optional' if argument.optional else 'required'} |"
        for argument in rpc.arguments
    )
    what, *rules = rpc.comment.strip().split("\n")
    text = "\n\n".join([what.strip(), *(_labeled(line.strip()) for line in rules if line.strip())])
    return textwrap.dedent(
        """\
        ## {name}

        {text}

        | argument | type | |
        |---|---|---|
        {rows}

        ```sql
        {sql}
        ```

        ```http
        {request}
        ```
        """
    ).format(name=rpc.name, text=text, rows=rows, sql=rpc.example_sql(), request=rpc.example_request())


def _labeled(line: str) -> str:
    label, colon, rest = line.partition(":")
    return f"**{label}:**{rest}" if colon and label in ("Rules", "Errors") else line


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        value = json.dumps(value)
    return "'" + str(value).replace("'", "''") + "'"


def write_page(connection: psycopg.Connection[Any], path: Path = REFERENCE_FILE) -> None:
    """Write docs/crm-rpc.md from the connected database."""
    path.write_text(page(connection), encoding="utf-8")
