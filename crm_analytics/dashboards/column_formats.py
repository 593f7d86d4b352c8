"""The heading, unit and decimals of each column of the dashboard queries, once for all panels."""

from __future__ import annotations

from dataclasses import dataclass

#: Shown for NULL unless the column has a more telling text.
MISSING = "–"
NO_TARGET = "no target set"


@dataclass(frozen=True)
class Column:
    """A heading, a Grafana unit (empty: as it comes), decimals, and the text shown for a missing value (NULL)."""

    title: str
    unit: str = ""
    decimals: int | None = None
    missing: str = MISSING


MOMENT = "time:YYYY-MM-DD HH:mm"
#: Whole amounts; Grafana's unit currencyUSD would show 3884.71 as $4K.
DOLLARS = "currency:financial:$"
COUNT, MONEY, CENTS, PERCENT = ("locale", 0), (DOLLARS, 0), (DOLLARS, 2), ("percentunit", 1)

#: Measures that panels also compare with the month before: heading and format.
_COMPARED = {
    "leads": ("Leads", COUNT),
    "units": ("Units", COUNT),
    "repairs": ("Repairs", COUNT),
    "cost": ("Cost", MONEY),
    "revenue40": ("Revenue40", MONEY),
    "profit": ("Profit", MONEY),
    "cpl": ("CPL", CENTS),
}

COLUMNS: dict[str, Column] = {
    **{name: Column(title, *form) for name, (title, form) in _COMPARED.items()},
    **{f"{name}_before": Column("Same days, month before", *form) for name, (_, form) in _COMPARED.items()},
    **{f"{name}_change": Column(f"{title} ±%", *PERCENT) for name, (title, _) in _COMPARED.items()},
    "profit_change": Column("Profit ±$", *MONEY),
    "month": Column("Month"),
    "day": Column("Day", *COUNT),
    "days": Column("Days"),
    "source": Column("Source"),
    "segment": Column("Segment"),
    "count": Column("Count", *COUNT),
    "jobs": Column("Jobs", *COUNT),
    "calls": Column("Calls", *COUNT),
    "crm_leads": Column("Leads", *COUNT),
    "passed": Column("Passed", *COUNT),
    "counted": Column("In the metrics", *COUNT),
    "revenue_gross": Column("Gross revenue", *MONEY),
    "conv_l_to_u": Column("L→U", *PERCENT),
    "conv_l_to_r": Column("L→R", *PERCENT),
    "conv_u_to_r": Column("U→R", *PERCENT),
    "conv_l_to_r_target": Column("L→R target", *PERCENT, NO_TARGET),
    "target_conv_l_to_r": Column("L→R target", *PERCENT, NO_TARGET),
    "cpl_maximum": Column("CPL maximum", *CENTS, NO_TARGET),
    "target_cpl_max": Column("CPL maximum", *CENTS, NO_TARGET),
    "cost_per_repair": Column("Cost per repair", *CENTS),
    "revenue40_per_lead": Column("Revenue40 per lead", *CENTS),
    "margin": Column("Margin", *PERCENT),
    "repairs_target": Column("Target", *COUNT, NO_TARGET),
    "revenue40_target": Column("Target", *MONEY, NO_TARGET),
    "target_repairs": Column("Repairs target", *COUNT, NO_TARGET),
    "target_revenue40": Column("Revenue40 target", *MONEY, NO_TARGET),
    **{
        f"{measure}_{name}": Column(title, *form, missing)
        for measure, form in (("repairs", ("locale", 1)), ("revenue40", MONEY))
        for name, title, missing in (
            ("pace", "Pace", NO_TARGET),
            ("projection", "Projection", "no data yet"),
            ("needed_per_day", "Needed per day", "no target, or month over"),
        )
    },
    "repairs_attainment": Column("Repairs attainment", *PERCENT, "no target above 0"),
    "revenue40_attainment": Column("Revenue40 attainment", *PERCENT, "no target above 0"),
    "actual": Column("Actual"),
    "pace": Column("Pace"),
    "target": Column("Target"),
    "last_month": Column("Month before"),
    "projection": Column("Projection"),
    "last_file": Column("Last file"),
    "last_exported_at": Column("Exported", MOMENT),
    "last_loaded_at": Column("Loaded", MOMENT),
    "last_row": Column("Last row"),
    "days_behind": Column("Days behind", *COUNT),
    "reason": Column("Reason"),
    "records": Column("Records", *COUNT),
    "files": Column("Files", *COUNT),
    "oldest": Column("Oldest", MOMENT),
    "example_file": Column("A file"),
    "path": Column("File"),
    "connector": Column("From", missing="a person"),
    "status": Column("Status"),
    "message": Column("Message"),
    "first_seen_at": Column("First seen", MOMENT),
    "finished_at": Column("Read", MOMENT),
    "records_read": Column("Records read", *COUNT),
    "inserted": Column("New", *COUNT),
    "updated": Column("Changed", *COUNT),
    "unchanged": Column("Unchanged", *COUNT),
    "duplicates": Column("Duplicate", *COUNT),
    "superseded": Column("Superseded", *COUNT),
    "quarantined": Column("Quarantined", *COUNT),
    "summary_lines": Column("Totals lines", *COUNT),
    "warnings": Column("Warnings", *COUNT),
    "run_id": Column("Dagster run", missing=""),
    "stale_since": Column("Stale since", MOMENT),
    "causes": Column("Why"),
    "revised_at": Column("Revised", MOMENT),
    "changes": Column("Changes"),
    "last_refreshed_at": Column("Last refresh", MOMENT, missing="never"),
    "changed_rows": Column("Rows changed", *COUNT),
    "state": Column("State"),
    "measure": Column("Compared"),
    "expected": Column("Below", "locale", 2),
    "found": Column("Metrics", "locale", 2),
    "difference": Column("Difference", "locale", 2),
    "first_month": Column("First month"),
    "last_month_seen": Column("Last month"),
    "part": Column("Part"),
    "counted_on": Column("Day"),
    "kind": Column("What"),
    "id": Column("Id"),
    "amount": Column("Amount", "locale", 4),
    "rule": Column("Why it counts"),
    "file": Column("File", missing="by hand"),
    "record_no": Column("Record"),
    "explained": Column("Rows add up to", "locale", 4),
    "stored": Column("As stored", "locale", 4),
    "stale_months": Column("Stale months", *COUNT),
    "refused_files": Column("Refused files", *COUNT),
    "unrecognized_files": Column("Unrecognized files", *COUNT),
    "seconds_since_refresh": Column("Since the last refresh", "dtdhms", missing="never"),
    **{
        name: Column(name.replace("_", " ").capitalize(), *COUNT)
        for name in (
            "new",
            "in_progress",
            "converted",
            "rejected",
            "other",
            "created",
            "awaiting_payment",
            "paid",
            "in_delivery",
            "delivered",
            "closed",
            "cancelled",
            "rows",
            "payments",
            "orders",
        )
    },
    "lead_to_order": Column("Lead→order", *PERCENT),
    "order_to_paid": Column("Order→paid", *PERCENT),
    "paid_to_delivered": Column("Paid→delivered", *PERCENT),
    "days_to_order": Column("Days to order", "locale", 1),
    "days_to_paid": Column("Days to paid", "locale", 1),
    "days_to_delivered": Column("Days to delivered", "locale", 1),
    "client_paid": Column("Clients paid", "locale", 2),
    "refunded": Column("Refunded", "locale", 2),
    "paid_out": Column("Paid out", "locale", 2),
    "held": Column("Held", "locale", 2),
    "entity": Column("What"),
    "mean_days": Column("Mean days", "locale", 1),
    "longest_days": Column("Longest days", "locale", 1),
    "currency": Column("Currency"),
    "money_in": Column("In", "locale", 2),
    "money_out": Column("Out", "locale", 2),
    "net": Column("Net", "locale", 2),
    "at": Column("When", MOMENT),
    "action": Column("Action"),
    "entity_id": Column("Id"),
    "actor": Column("Who"),
    "sealed": Column("Sealed"),
}
