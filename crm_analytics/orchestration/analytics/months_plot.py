"""Draws the plot of months for the Dagster UI, a small PNG image inside markdown metadata."""

from __future__ import annotations

import base64
import io
from typing import Any

import dagster as dg
import psycopg

MOST_MONTHS = 24


def months_plot(connection: psycopg.Connection[Any]) -> dg.MarkdownMetadataValue:
    """Plots revenue40 and repairs by month for the last two years, with the target where one is set."""
    # takes half a second to import, and only this function needs it
    from matplotlib.figure import Figure

    rows = connection.execute(
        """
        SELECT m.month, m.revenue40, m.repairs, t.target_revenue40
        FROM (
            SELECT month, sum(revenue40) AS revenue40, sum(repairs) AS repairs
            FROM analytics.monthly_metrics
            GROUP BY month
            ORDER BY month DESC
            LIMIT %s
        ) m
        LEFT JOIN analytics.targets t ON t.month = m.month AND t.source_folded = 'all' AND t.segment = 'ALL'
        ORDER BY m.month
        """,
        [MOST_MONTHS],
    ).fetchall()
    if not rows:
        return dg.MetadataValue.md("_no metrics yet_")
    labels = [f"{row[0]:%b %y}" for row in rows]
    figure = Figure(figsize=(9, 3), dpi=100, layout="constrained")
    revenue = figure.subplots()
    revenue.bar(labels, [float(row[1]) for row in rows], color="#7aa6d9", label="revenue40, $")
    targets = [(label, float(row[3])) for label, row in zip(labels, rows, strict=True) if row[3] is not None]
    if targets:
        revenue.plot([t[0] for t in targets], [t[1] for t in targets], "k_", markersize=11, label="target, $")
    revenue.tick_params(axis="x", rotation=60, labelsize=8)
    revenue.tick_params(axis="y", labelsize=8)
    revenue.yaxis.set_major_formatter("{x:,.0f}")
    repairs = revenue.twinx()
    repairs.plot(labels, [int(row[2]) for row in rows], color="#c2552d", marker=".", label="repairs")
    repairs.tick_params(axis="y", labelsize=8)
    repairs.set_ylim(bottom=0)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    encoded = base64.b64encode(image.getvalue()).decode()
    return dg.MetadataValue.md(f"![revenue40 and repairs by month](data:image/png;base64,{encoded})")
