"""Generates docs/crm-rpc.md and rpc_methods.py, the reference and the typed client of the RPCs, from the catalog."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.crm.schema.catalog import CRM_TABLES, CRM_VIEWS, READ_NAMES, RPC_NAMES

REFERENCE_FILE = PROJECT_DIR / "docs" / "crm-rpc.md"
CLIENT_FILE = Path(__file__).with_name("rpc_methods.py")

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
    "p_document_id": "00000000-0000-4000-8000-000000000011",
    "p_crm_user_id": "00000000-0000-4000-8000-000000000010",
    "p_merged_into": "00000000-0000-4000-8000-000000000011",
    "p_reason": "the same person",
    "p_source": "site",
    "p_full_name": "Ada Example",
    "p_name": "Ada Example",
    "p_email": "ada@example.com",
    "p_phone": "+1 202 555 0100",
    "p_items": [{"model": "Road 54", "qty": 1}],
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
    "p_rebook_order_id": "00000000-0000-4000-8000-000000000011",
    "p_notes": "prefers e-mail",
    "p_country": "US",
}
#: Example values of arguments that mean something else in this function.
_EXAMPLES_OF: dict[str, dict[str, Any]] = {
    "record_generic_payment_safe": {"p_role": "client_payment"},
    "reverse_payment_safe": {"p_reason": "booked on the wrong order"},
    "withdraw_document_safe": {"p_reason": "the wrong file"},
    "erase_customer_safe": {"p_reason": "asked by letter"},
    "create_user_safe": {"p_role": "manager"},
    "set_user_role_safe": {"p_role": "manager"},
    "advance_lead_status_safe": {"p_new_status": "in_progress"},
    "advance_order_status_safe": {"p_new_status": "in_delivery"},
    "update_payment_status_safe": {"p_new_status": "completed"},
    "upsert_shipment_safe": {"p_provider": "cdek", "p_status": "shipped"},
}
#: Optional arguments that an example shows nevertheless.
_WORTH_SHOWING = {
    "p_external_reference", "p_notes", "p_tracking_number", "p_provider", "p_status", "p_completed", "p_user_id",
    "p_rebook_order_id", "p_phone", "p_order_id", "p_name", "p_items", "p_total_amount", "p_currency", "p_country",
    "p_commission_eur",
}  # fmt: skip

#: Required arguments that may be NULL: the customer comes from the lead, and only providers give references.
_NULLABLE = {
    ("create_order_safe", "p_customer_id"),
    ("checkout_order_safe", "p_customer_id"),
    ("checkout_order_safe", "p_external_reference"),
}

_PAGE = """\
# Safe RPCs

Generated from the catalog by `crm-analytics crm reference`, together with the typed client in
`crm_analytics/crm/rpc_methods.py`; a test keeps both up to date. [crm.md](crm.md) explains the guards behind these
functions.

Every function returns one `jsonb` object with the `id` of the row concerned. Refusals carry an SQLSTATE that
PostgREST maps to an HTTP status, and a DETAIL of machine-readable JSON (`rule`, `field`, `found`, `accepted`):

| SQLSTATE | HTTP | meaning |
|---|---|---|
| `42501` | 403 | the actor is missing, unknown, inactive, or lacks the role |
| `PT422` | 422 | an argument is not acceptable, whatever the state of the data |
| `PT404` | 404 | a row that the call names does not exist |
| `PT409` | 409 | the state of the data does not allow it |

Every function checks in this order: actor, input, existence, role, replay, state. A refused call changes nothing.

PostgreSQL itself refuses some calls, without such a DETAIL, and they change nothing either. The client raises the
exceptions in the last column (`crm_analytics.crm.errors`):

| SQLSTATE | HTTP | meaning | what to do | exception |
|---|---|---|---|---|
| `22P02` | 400 | the text of an argument is no value of its type: `"abc"` for a number, an id or a boolean | send a value of the type | `Malformed` |
| `22007` | 400 | the text of an argument is no date or time | send ISO 8601, e.g. `2026-03-01T12:00:00Z` | `Malformed` |
| `22008` | 400 | a date that no calendar has, or a time out of range | send another one | `Malformed` |
| `22P05` | 400 | a JSON text has the character U+0000, which PostgreSQL cannot store | leave it out | `Malformed` |
| `22003` | 400 | a number is too large for its type | send a smaller one | `Malformed` |
| `40P01` | 500 | two transactions waited for each other; this one was ended | repeat the transaction | `Busy` |
| `55P03` | 500 | a row stayed locked for longer than `lock_timeout` | repeat the transaction later | `Busy` |
| `57014` | 500 | the call took longer than `statement_timeout`, or was canceled | repeat it later | `Busy` |
| `25001` | 500 | the transaction runs above READ COMMITTED, where it would not see what it waited for | start it with `ISOLATION LEVEL READ COMMITTED` | `WrongIsolation` |

A call that is not answered (a lost connection) may have been carried out. Repeat it with the same `p_external_reference` or
`p_idempotency_key`: it is carried out only once.

The functions believe the caller about `p_user_id`, so only trusted servers hold the role `crm_app`.

Identifiers (references, idempotency keys, order and tracking numbers, e-mail addresses, phones, accounts) have at most
255 characters, and file addresses 2,048 bytes without invisible characters. `found` shows the first 200 characters of a long argument. Notes,
comments, reasons and every other text have at most 16 KiB; items, snapshots and carriers' answers at most 256 KiB of JSON. Items are a list of objects with `model` (text)
and `qty` (a whole number, 1 or more), and whatever else you keep: `[{"model": "Road 54", "qty": 1, "color": "blue"}]`.
"""


_CLIENT = '''\
"""The CRM's RPCs as typed methods, generated by `crm-analytics crm reference`: do not edit."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

from crm_analytics.crm.client import CrmResult, Json, Money, RpcCaller


class CrmClient(RpcCaller):
    """The RPCs by name, with named arguments (the SQL names without `p_`); docs/crm-rpc.md has rules and errors."""
'''

_PYTHON_TYPES = {
    "bigint": "int",
    "boolean": "bool",
    "date": "date",
    "integer": "int",
    "jsonb": "Json",
    "numeric": "Money",
    "text": "str",
    "text[]": "tuple[str, ...]",
    "timestamp with time zone": "datetime",
    "uuid": "UUID",
}


_READS = """\
# Reads

`crm_app` may read the tables, and these views and searches, which PostgREST offers like tables and functions
(`GET /order_balance?order_id=eq.…`, `GET /rpc/find_customers_by_name?p_prefix=olga`). They run with the caller's rights
(`changes_after` and `whoami` with those of `crm_rpc`). The client has the functions as methods that return rows, and
`whoami` as one that returns an object, as PostgREST does.
"""
_WORDS = """\
# Words

The requirements call some columns otherwise than the tables; arguments and views use the words on the left.

| word | column | meaning |
|---|---|---|
"""
#: How a column's comment names the word.
_WORD = re.compile(r" \((\w+)(?: of a lead)? in the requirements\)")


@dataclass(frozen=True)
class Argument:
    """One argument of an RPC: its type, whether it has a default (NULL), and whether it may be NULL without one."""

    name: str
    type: str
    optional: bool
    nullable: bool

    def row(self) -> str:
        """Returns the argument's row in the reference page."""
        use = "optional" if self.optional else "required, may be NULL" if self.nullable else "required"
        return f"| `{self.name}` | `{self.type}` | {use} |"

    def parameter(self) -> str:
        """Returns the argument as a parameter of the client's method.

        An actor may be None as well: the database refuses the call, as it refuses an unknown user.
        """
        none = self.optional or self.nullable or self.name == "p_user_id"
        python_type = _PYTHON_TYPES[self.type] + (" | None" if none else "")
        return f"        {self.name.removeprefix('p_')}: {python_type}{' = None' if self.optional else ''},\n"


@dataclass(frozen=True)
class Rpc:
    """One RPC: its name, its arguments in order, and its SQL comment (one sentence, then rules and errors)."""

    name: str
    arguments: tuple[Argument, ...]
    comment: str

    def example(self) -> dict[str, Any]:
        """Returns the arguments of the example call."""
        values = _EXAMPLES | _EXAMPLES_OF.get(self.name, {})
        shown = [a.name for a in self.arguments if not a.optional or a.name in _WORTH_SHOWING]
        return {name: values[name] for name in shown if name in values}

    def example_sql(self) -> str:
        """Returns the example as SQL."""
        lines = ",\n".join(f"    {name} => {_literal(value)}" for name, value in self.example().items())
        return f"SELECT public.{self.name}(\n{lines}\n);"

    def example_request(self) -> str:
        """Returns the example as a PostgREST request."""
        body = json.dumps(self.example(), indent=2)
        return f"POST /rpc/{self.name} HTTP/1.1\nContent-Type: application/json\n\n{body}"

    def section(self) -> str:
        """Returns the RPC's section of the reference page."""
        what, *rules = (line.strip() for line in self.comment.strip().split("\n"))
        text = "\n\n".join([what, *(_labeled(line) for line in rules if line)])
        rows = "\n".join(argument.row() for argument in self.arguments)
        return (
            f"## {self.name}\n\n{text}\n\n| argument | type | |\n|---|---|---|\n{rows}\n\n"
            f"```sql\n{self.example_sql()}\n```\n\n```http\n{self.example_request()}\n```\n"
        )

    def method(self) -> str:
        """Returns the RPC as a method of the client, formatted as ruff would."""
        what = self.comment.strip().split("\n")[0].strip()
        parameters = "".join(argument.parameter() for argument in self.arguments)
        return (
            f"    def {self.name}(\n        self,\n        *,\n{parameters}    ) -> CrmResult:\n"
            f'        """{what}"""\n        return self._call("{self.name}", locals())\n'
        )


@dataclass(frozen=True)
class Read:
    """One view or function: its arguments (none: a view), what it returns by column, and its SQL comment."""

    name: str
    arguments: tuple[Argument, ...]
    columns: tuple[tuple[str, str], ...]
    comment: str
    one_row: bool = False

    def section(self) -> str:
        """Returns the read's section of the reference page."""
        comment = self.comment.replace("\n", "\n\n")
        if self.arguments:
            call = ", ".join(f"{argument.name} {argument.type}" for argument in self.arguments)
            columns = ", ".join(f"`{name}`" for name, _ in self.columns)
            return f"## {self.name}\n\n`{self.name}({call})`: {comment}\n\nColumns: {columns}\n"
        rows = "\n".join(f"| `{name}` | `{type_}` |" for name, type_ in self.columns)
        return f"## {self.name}\n\n{comment}\n\n| column | type |\n|---|---|\n{rows}\n"

    def method(self) -> str:
        """Returns the function as a method of the client."""
        parameters = "".join(argument.parameter() for argument in self.arguments)
        result, call = ("dict[str, Any]", "_row") if self.one_row else ("list[dict[str, Any]]", "_rows")
        return (
            f"    def {self.name}(\n        self,\n        *,\n{parameters}    ) -> {result}:\n"
            f'        """{self.comment.splitlines()[0]}"""\n        return self.{call}("{self.name}", locals())\n'
        )


def reads(connection: psycopg.Connection[Any]) -> list[Read]:
    """Returns the views, then the functions."""
    views = connection.execute(
        """
        SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum),
            array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY a.attnum), obj_description(c.oid, 'pg_class')
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s)
        GROUP BY c.oid, c.relname ORDER BY array_position(%s, c.relname::text)
        """,
        [list(CRM_VIEWS)] * 2,
    )
    functions = connection.execute(
        """
        SELECT p.proname::text, p.proargnames, p.pronargs, p.pronargdefaults, p.proallargtypes::regtype[]::text[],
            obj_description(p.oid, 'pg_proc'), NOT p.proretset
        FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (%s)
        ORDER BY array_position(%s, p.proname::text)
        """,
        [list(READ_NAMES)] * 2,
    )
    return [
        *(
            Read(name, (), tuple(zip(columns, types, strict=True)), comment)
            for name, columns, types, comment in views
        ),
        *(
            Read(
                name,
                tuple(
                    Argument(argument, type_, number >= given - defaults, False)
                    for number, (argument, type_) in enumerate(zip(names[:given], types[:given], strict=True))
                ),
                tuple(zip(names[given:], types[given:], strict=True)),
                comment,
                one_row,
            )
            for name, names, given, defaults, types, comment, one_row in functions
        ),
    ]


def words(connection: psycopg.Connection[Any]) -> list[str]:
    """Returns the table of the requirements' words, from the comments of the columns that have another name."""
    found = connection.execute(
        """
        SELECT c.relname || '.' || a.attname, col_description(c.oid, a.attnum)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s)
            AND col_description(c.oid, a.attnum) LIKE '%%in the requirements)%%'
        """,
        [list(CRM_TABLES)],
    ).fetchall()
    lines = []
    for column, comment in found:
        (word,) = _WORD.findall(comment)
        lines.append(f"| `{word}` | `{column}` | {_WORD.sub('', comment)} |")
    return sorted(lines)


def rpcs(connection: psycopg.Connection[Any]) -> list[Rpc]:
    """Returns the RPCs of the connected database, in the order of the reference page.

    Raises:
        LookupError: if one of them is missing.
    """
    rows = connection.execute(
        """
        SELECT p.proname, coalesce(obj_description(p.oid, 'pg_proc'), ''), array_agg(a.name ORDER BY a.n),
            array_agg(format_type(a.type, NULL) ORDER BY a.n),
            array_agg(a.n > p.pronargs - p.pronargdefaults ORDER BY a.n)
        FROM pg_proc p,
            unnest(p.proargnames[1:p.pronargs], p.proargtypes::oid[]) WITH ORDINALITY AS a(name, type, n)
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname = ANY (%s)
        GROUP BY p.oid, p.proname
        """,
        [list(RPC_NAMES)],
    )
    found = {
        rpc: Rpc(
            rpc,
            tuple(
                Argument(name, type_, optional, (rpc, name) in _NULLABLE)
                for name, type_, optional in zip(*arguments, strict=True)
            ),
            comment,
        )
        for rpc, comment, *arguments in rows
    }
    missing = ", ".join(name for name in RPC_NAMES if name not in found)
    if missing:
        raise LookupError(f"no function {missing} in schema public: run `crm-analytics migrate crm`")
    return [found[name] for name in RPC_NAMES]


def page(connection: psycopg.Connection[Any]) -> str:
    """Returns the text of docs/crm-rpc.md."""
    functions = rpcs(connection)
    others = reads(connection)
    names = [*(rpc.name for rpc in functions), *(read.name for read in others)]
    contents = "\n".join(f"- [`{name}`](#{name})" for name in names)
    return "\n".join(
        [
            _PAGE,
            contents,
            "",
            *(rpc.section() for rpc in functions),
            _READS,
            *(read.section() for read in others),
            _WORDS + "\n".join(words(connection)),
            "",
        ]
    )


def client(connection: psycopg.Connection[Any]) -> str:
    """Returns the text of rpc_methods.py."""
    functions = [read.method() for read in reads(connection) if read.arguments]
    return "\n".join([_CLIENT, *(rpc.method() for rpc in rpcs(connection)), *functions])


def write(connection: psycopg.Connection[Any]) -> tuple[Path, ...]:
    """Writes both files from the connected database, and returns their paths."""
    REFERENCE_FILE.write_text(page(connection), encoding="utf-8")
    CLIENT_FILE.write_text(client(connection), encoding="utf-8")
    return REFERENCE_FILE, CLIENT_FILE


def _labeled(line: str) -> str:
    label, colon, rest = line.partition(":")
    return f"**{label}:**{rest}" if colon and label in ("Rules", "Errors") else line


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | dict):
        value = json.dumps(value)
    return "'" + str(value).replace("'", "''") + "'"
