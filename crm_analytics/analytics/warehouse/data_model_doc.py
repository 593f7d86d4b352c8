"""Generates docs/data-model.md from the catalog: purpose, columns, keys and indexes of every table.

`python -m crm_analytics.analytics.warehouse.data_model_doc > docs/data-model.md`
"""

from __future__ import annotations

from typing import Any

import psycopg

from crm_analytics.analytics.warehouse.catalog import Relation, relations

SCHEMAS = ("raw", "analytics", "reporting")

INTRODUCTION = """# Data model of the analytics database

Generated from the catalog by `python -m crm_analytics.analytics.warehouse.data_model_doc`; do not edit. A test keeps
it equal to the database. The scripts themselves: `crm-analytics migrate analytics --sql`.

Schema `raw` holds the exports' rows, the ledger of files and the quarantine. Schema `analytics` holds the channel
rules, the facts (views that contain every business rule once) and the aggregates that Grafana reads. Schema
`reporting` holds what dashboards need beyond that, without customer data.
Values of `source` and `segment` are text: a CHECK limits segments, `spellings` names sources.
"""


def data_model(connection: psycopg.Connection[Any]) -> str:
    """Returns the page as Markdown."""
    parts = [INTRODUCTION]
    for relation in relations(connection, *SCHEMAS):
        parts.append(_section(relation))
    return "\n".join(parts)


def _section(relation: Relation) -> str:
    kind = "view" if relation.is_view else "table"
    lines = [f"## {relation.schema}.{relation.name} ({kind})", "", relation.comment or "", ""]
    if relation.is_view:
        lines += ["| column | type | meaning |", "| --- | --- | --- |"]
        lines += [f"| {c.name} | {c.type} | {c.comment or ''} |" for c in relation.columns]
    else:
        lines += ["| column | type | null | default | meaning |", "| --- | --- | --- | --- | --- |"]
        for c in relation.columns:
            default = f"`{_inline(c.default)}`" if c.default else ""
            if c.generated:
                default = f"generated: {default}"
            lines.append(
                f"| {c.name} | {c.type} | {'yes' if c.nullable else 'no'} | {default} | {c.comment or ''} |"
            )
    if relation.constraints:
        lines += ["", "Keys and constraints:", "", *(f"- `{_inline(text)}`" for text in relation.constraints)]
    if relation.indexes:
        lines += ["", "Indexes:", "", *(f"- `{_inline(text)}`" for text in relation.indexes)]
    return "\n".join(lines) + "\n"


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    from crm_analytics.core.database import connect

    with connect("analytics") as analytics:
        print(data_model(analytics), end="")
