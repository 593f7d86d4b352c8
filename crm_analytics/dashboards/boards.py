"""The seven dashboards: their panels, each with its query in sql/grafana/, its columns and its definition."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from crm_analytics.core.rule_texts import rule_text
from crm_analytics.dashboards.column_formats import COLUMNS, DOLLARS
from crm_analytics.dashboards.panels import (
    AMBER,
    CRM,
    EXPLAIN,
    GREEN,
    RED,
    Layout,
    bars_panel,
    board,
    cumulative_panel,
    lines_panel,
    stat_panel,
    table_panel,
)
from crm_analytics.dashboards.queries import query

FILTERS = ("source", "segment")
CLOCK = (
    "A month is partial until jobs are loaded through its last day. Days count through the last day with loaded jobs, "
    "but never past today in the business timezone."
)
RATIOS = "Ratios are ratios of sums, never averages of ratios; – means that the denominator is 0."
SEGMENTS = (
    "eLocals and Pro Referral leads, Google spend and calls have no segment and count as OTHER, so ratios are "
    "meaningful by source and over all segments."
)
TARGET = "A target for ALL is compared only with an unfiltered selection."
MEASURES = {
    "leads": "Leads: what each channel's rule in analytics.lead_channels counts, its jobs, its units or the leads that "
    "it sold; other sources have none.",
    "units": f"{rule_text('is_unit')} In any status.",
    "repairs": rule_text("is_repair"),
    "cost": "Cost: what each channel's rule in analytics.lead_channels says: the leads' own prices, a price per lead, or "
    "Google's spend. Other sources cost nothing.",
    "revenue40": f"{rule_text('revenue40')} Gross revenue: payments for jobs created in the period, less refunds.",
    "profit": "Profit: Revenue40 − cost.",
    "cpl": "CPL (cost per lead): cost / leads.",
    "calls": "Calls: phone calls by date, and by the source that their flow belongs to.",
}


def month_to_month() -> dashboard.Dashboard:
    """Compares the months of each source, as a table and as one chart per measure."""
    result = board(
        "crm-analytics-months",
        "Month to month by source",
        "Every measure by month and source, with its change from the month before.",
        variables=(*FILTERS, "dagster_url"),
        revisions=True,
    )
    layout = Layout(result)
    layout.add(
        table_panel(
            "Month to month by source",
            "From monthly_metrics, newest month first. Each month starts with the total of its sources. "
            "Changes are from the month before; a partial month is compared with the same number of days. "
            f"{CLOCK} {RATIOS} {SEGMENTS}",
            query("month_to_month_by_source"),
            ("month", "days", "source", "leads", "leads_change", "units", "units_change", "repairs",
             "repairs_change", "cost", "cost_change", "revenue40", "revenue40_change", "profit", "profit_change",
             "conv_l_to_u", "conv_l_to_r", "conv_u_to_r", "cpl", "cpl_change", "revenue_gross", "jobs", "calls"),
        ), 24, 14,
    )  # fmt: skip
    for measure in ("leads", "units", "repairs", "revenue40", "cost", "profit"):
        layout.add(
            lines_panel(
                f"{COLUMNS[measure].title} by month and source",
                f"{MEASURES[measure]} From monthly_metrics.",
                query("monthly_series_by_source", measure=measure),
                unit=COLUMNS[measure].unit,
                bars=True,
            ), 12, 8,
        )  # fmt: skip
    return result


def daily_vs_target() -> dashboard.Dashboard:
    """Follows Repairs and Revenue40 through one month, day by day."""
    result = board(
        "crm-analytics-daily",
        "Daily cumulative against target",
        "Repairs and Revenue40 of one month, day by day, against pace, target, the month before and the projection.",
        variables=("month", *FILTERS, "dagster_url"),
    )
    layout = Layout(result)
    lines = (
        ("actual", "green", False),
        ("pace", "blue", True),
        ("target", "red", False),
        ("last_month", "gray", False),
        ("projection", "orange", True),
    )
    for measure in ("repairs", "revenue40"):
        layout.add(
            cumulative_panel(
                f"Cumulative {COLUMNS[measure].title} against target",
                f"{MEASURES[measure]} By day of the month, from daily_metrics and targets. Actual ends on the last "
                "loaded day. Pace: target × day / days in the month. Projection: actual + mean of the last 14 "
                f"complete days × days left. {TARGET}",
                query(f"daily_cumulative_{measure}_vs_target"),
                unit=COLUMNS[measure].unit,
                columns=lines,
            ), 12, 12,
        )  # fmt: skip
    _attainment(layout)
    layout.add(
        table_panel(
            "Targets and months",
            f"Months in the time range that have metrics or a target. {CLOCK} {TARGET} {RATIOS}",
            query("targets_by_month"),
            ("month", "days", "repairs", "target_repairs", "repairs_attainment", "revenue40", "target_revenue40",
             "revenue40_attainment", "conv_l_to_r", "target_conv_l_to_r", "cpl", "target_cpl_max"),
        ), 24, 9,
    )  # fmt: skip
    return result


def executive() -> dashboard.Dashboard:
    """Shows the month so far on one page."""
    result = board(
        "crm-analytics-executive",
        "Executive",
        "The month so far against the same days of the month before, pace and target.",
        variables=("month", *FILTERS, "dagster_url"),
        revisions=True,
    )
    layout = Layout(result)
    scorecard = query("month_scorecard")
    same_days = f"Below it, the same days of the month before. {CLOCK}"
    with_target = (
        "With the same days of the month before, the pace (target × elapsed days / days in the month) and the "
        f"target. {TARGET} {CLOCK}"
    )
    for measure in ("leads", "units", "repairs", "revenue40", "cost", "profit"):
        columns: tuple[str, ...] = (measure, f"{measure}_before")
        meaning = same_days
        if measure in ("repairs", "revenue40"):
            columns += (f"{measure}_pace", f"{measure}_target")
            meaning = with_target
        layout.add(
            stat_panel(COLUMNS[measure].title, f"{MEASURES[measure]} {meaning}", scorecard, columns), 6, 6
        )
    layout.add(
        stat_panel("Cost per lead", f"{MEASURES['cpl']} With its maximum; – without leads. {same_days} {TARGET}",
                   scorecard, ("cpl", "cpl_before", "cpl_maximum")), 6, 6,
    )  # fmt: skip
    layout.add(
        stat_panel("Conversion of leads to repairs",
                   f"Repairs / leads, with its target; – without leads. {TARGET}",
                   scorecard, ("conv_l_to_r", "conv_l_to_r_target")), 6, 6,
    )  # fmt: skip
    _attainment(layout)
    layout.add(
        lines_panel(
            "Revenue40, cost and profit by month",
            f"{MEASURES['revenue40']} {MEASURES['cost']} {MEASURES['profit']} From monthly_metrics.",
            query("monthly_money"),
            unit=DOLLARS,
            columns=("revenue40", "cost", "profit"),
        ), 24, 9,
    )  # fmt: skip
    return result


def funnel() -> dashboard.Dashboard:
    """Follows leads to repairs, with what each costs and brings in."""
    result = board(
        "crm-analytics-funnel",
        "Funnel and unit economics",
        "Leads to units to repairs by source and segment, and what a lead costs and brings in.",
        variables=(*FILTERS, "dagster_url"),
        revisions=True,
    )
    layout = Layout(result)
    layout.add(
        bars_panel(
            "Leads, units, repairs",
            f"{MEASURES['leads']} {MEASURES['units']} {MEASURES['repairs']} For the months in the time range.",
            query("funnel_stages"),
            "stage",
            ("count",),
        ), 8, 9,
    )  # fmt: skip
    layout.add(
        lines_panel(
            "Conversions by month",
            f"L→U: units / leads. U→R: repairs / units. L→R: repairs / leads. {RATIOS} {TARGET}",
            query("conversion_by_month"),
            unit="percentunit",
            decimals=1,
            columns=("conv_l_to_u", "conv_u_to_r", "conv_l_to_r", "conv_l_to_r_target"),
        ), 8, 9,
    )  # fmt: skip
    layout.add(
        lines_panel(
            "Cost per lead and per repair by month",
            f"{MEASURES['cpl']} Cost per repair: cost / repairs. {RATIOS} {TARGET}",
            query("cpl_by_month"),
            unit=DOLLARS,
            decimals=2,
            columns=("cpl", "cpl_maximum", "cost_per_repair"),
        ), 8, 9,
    )  # fmt: skip
    economics = ("leads", "units", "repairs", "conv_l_to_u", "conv_u_to_r", "conv_l_to_r", "cpl", "cost_per_repair",
                 "revenue40_per_lead", "revenue40", "cost", "profit", "margin", "calls")  # fmt: skip
    layout.add(
        table_panel(
            "By source",
            "For the months in the time range, the total first. Cost per repair: cost / repairs. Revenue40 per lead: "
            f"Revenue40 / leads. Margin: profit / Revenue40. {RATIOS}",
            query("funnel", by="source"),
            ("source", *economics),
        ), 24, 10,
    )  # fmt: skip
    layout.add(
        table_panel(
            "By segment",
            f"COD or INS if the job type has that word, otherwise OTHER. {SEGMENTS} {RATIOS}",
            query("funnel", by="segment"),
            ("segment", *economics),
        ), 24, 6,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Leads in the field-service system",
            "For the months in the time range, by their own source, whatever the filters. They are leads in the metrics "
            "only where a channel has the rule workiz_leads. " + rule_text("is_workiz_lead"),
            query("workiz_leads"),
            ("source", "crm_leads", "passed", "converted", "counted"),
        ), 24, 6,
    )  # fmt: skip
    layout.add(
        lines_panel(
            "Calls by month and source",
            f"{MEASURES['calls']} All calls are in the segment OTHER. From monthly_metrics.",
            query("monthly_series_by_source", measure="calls"),
            unit="locale",
            bars=True,
        ), 24, 8,
    )  # fmt: skip
    return result


def data_trust() -> dashboard.Dashboard:
    """Shows whether the numbers can be trusted, and what to do if not."""
    result = board(
        "crm-analytics-trust",
        "Data trust",
        "How fresh and complete the data is: files, quarantine, stale months, reconciliation, revisions.",
        variables=("month", "dagster_url"),
    )
    layout = Layout(result)
    summary = query("trust_summary")
    red_above_0 = ((None, GREEN), (0.005, RED))
    amber_above_0 = ((None, GREEN), (1, AMBER))
    for column, title, description, thresholds in (
        ("difference", "Reconciliation difference", "Sum of the absolute differences in the Reconciliation table "
         "below, for the chosen month. It must be 0 unless the month is stale.", red_above_0),
        ("stale_months", "Stale months", "Months with changes that aren't in the metrics yet. The sensor "
         "refresh_stale_months refreshes them; if the number stays, the sensor isn't running.", amber_above_0),
        ("quarantined", "Quarantined records", "Records that couldn't be loaded, and that neither a newer export "
         "replaced nor a person dismissed.", amber_above_0),
        ("refused_files", "Refused files", "Files that couldn't be read as their source. Nothing in them is loaded.",
         ((None, GREEN), (1, RED))),
        ("unrecognized_files", "Unrecognized files", "Files whose columns fit no source.", amber_above_0),
        ("seconds_since_refresh", "Since the last refresh", "Time since the last refresh of any month ended.",
         ((None, GREEN), (86400 * 1.5, AMBER), (86400 * 3, RED))),
    ):  # fmt: skip
        layout.add(stat_panel(title, description, summary, (column,), thresholds=thresholds), 4, 4)
    layout.add(
        table_panel(
            "Freshness by kind of export",
            "The newest loaded file of each kind, and the newest day of its rows, future days left out. Days behind: "
            "from that day to today in the business timezone.",
            query("freshness"),
            ("source", "last_file", "last_exported_at", "last_loaded_at", "last_row", "days_behind"),
        ), 12, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Reconciliation",
            "Compares each layer with the one below, for the chosen month: daily metrics with jobs, calls and payments "
            "counted in the raw tables (payments of the month's jobs, and payments in the month with an unknown job), "
            "daily metrics with the facts, and monthly with daily metrics. A difference adds up what differs in any row, "
            "so totals may agree. It must be 0 unless the month is stale.",
            query("reconciliation"),
            ("measure", "expected", "found", "difference"),
        ), 12, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Quarantine by reason",
            "Open quarantined records, without what was found; raw.rejected_rows has the records themselves. "
            "A record with two reasons counts under both.",
            query("quarantine_by_reason"),
            ("source", "reason", "records", "files", "oldest", "example_file"),
        ), 24, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Files not loaded",
            "Refused and unrecognized files, judged by their current content, with the reason and the remedy.",
            query("files_not_loaded"),
            ("path", "connector", "status", "message", "first_seen_at", "run_id"),
        ), 24, 7,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Stale months in detail",
            "Months whose metrics are behind the raw tables, since when, and which tables changed.",
            query("stale_months"),
            ("month", "stale_since", "causes", "last_refreshed_at"),
        ), 8, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Last refresh of each month",
            "When it ended, how many daily rows it changed (0 means that the month was already right), and its Dagster run.",
            query("last_refreshes"),
            ("month", "last_refreshed_at", "changed_rows", "state", "run_id"),
        ), 10, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Sources without a rule",
            "Job sources that analytics.lead_channels doesn't have, so their leads and cost count as 0. To fix one, "
            "add its row there, or an alias in analytics.channel_aliases.",
            query("sources_without_rule"),
            ("source", "jobs", "first_month", "last_month_seen"),
        ), 6, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Revisions of closed months",
            "The 100 newest changes of months that had ended when they were refreshed before: by how much each measure "
            "changed, and which table, file or login changed it. Moved: between sources or segments. A month's first "
            "numbers are no revision.",
            query("revisions"),
            ("revised_at", "month", "changes", "causes", "run_id"),
        ), 24, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Files read last",
            "The 100 files read most recently, and the connector that pulled each, if one did. Records read = new + changed + unchanged + duplicate + superseded + "
            "quarantined + totals lines.",
            query("recent_files"),
            ("finished_at", "path", "source", "connector", "status", "records_read", "inserted", "updated", "unchanged",
             "duplicates", "superseded", "quarantined", "summary_lines", "warnings", "run_id"),
        ), 24, 9,
    )  # fmt: skip
    return result


def explain() -> dashboard.Dashboard:
    """Shows the rows that a number is made of; metrics in tables and stat panels link here."""
    result = board(
        EXPLAIN,
        "Explain",
        "The rows behind one number of the metrics, why each of them counts, and the files that they came from. Click a "
        "metric in a table or panel of another dashboard to come here with its month, source and segment.",
        variables=("months", "metric", *FILTERS, "dagster_url"),
    )
    layout = Layout(result)
    parts = "A ratio has the rows of its numerator and those of its denominator; the rows of any other metric add up to it."
    layout.add(
        table_panel(
            "The number by month",
            "What the rows add up to, and what monthly_metrics has: the same, unless the month is stale, which means that "
            f"rows have changed since it was computed. With several months, the total comes first. {RATIOS}",
            query("explain_months"),
            ("month", "rows", "explained", "stored", "difference", "stale_since", "causes"),
        ), 12, 6,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Files behind the number",
            f"The exports that last changed these rows. {parts}",
            query("explain_files"),
            ("part", "file", "rows", "amount"),
        ), 12, 6,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Rows behind the number",
            f"The first 1,000 rows, by day. {parts} Day: the one on which the row counts; a payment counts on the day of "
            "its job. Calls have no id here, because theirs is made of telephone numbers. All rows: crm-analytics explain "
            "--csv.",
            query("explain_rows"),
            ("part", "counted_on", "kind", "id", "source", "segment", "amount", "rule", "file", "record_no"),
        ), 24, 18,
    )  # fmt: skip
    return result


def crm() -> dashboard.Dashboard:
    """Shows the bicycle-order CRM, from its own database."""
    result = board(
        "crm-analytics-crm",
        "CRM",
        "Leads and orders by month and status, the way from lead to delivery, clients' money, time in status, money in "
        "and out, and the latest audit entries.",
        variables=("dagster_url",),
        refreshes=False,
    )
    layout = Layout(result)
    by_month = "By month of creation (UTC) and current status."
    layout.add(
        bars_panel("Leads by month and status", by_month, query("crm_leads_by_month"), "month",
                   ("new", "in_progress", "converted", "rejected", "other"), CRM, stacked=True), 12, 9,
    )  # fmt: skip
    layout.add(
        bars_panel("Orders by month and status", by_month, query("crm_orders_by_month"), "month",
                   ("created", "awaiting_payment", "paid", "in_delivery", "delivered", "closed", "cancelled", "other"),
                   CRM, stacked=True), 12, 9,
    )  # fmt: skip
    of_leads = "By month of the lead (UTC): leads from which an order was made, and whose order was paid and delivered."
    layout.add(
        bars_panel("From lead to delivery", of_leads, query("crm_funnel_by_month"), "month",
                   ("leads", "orders", "paid", "delivered"), CRM), 12, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Clients' money",
            "Completed payments by booking month (UTC) and currency. Paid out: to suppliers, for shipping and "
            "commissions, less what came back. Held: what is left at the end of the month of all money until then.",
            query("crm_client_money"),
            ("month", "currency", "client_paid", "refunded", "paid_out", "held"),
            CRM,
        ), 12, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "From lead to delivery by source",
            f"{of_leads} Percentages are of the step before. Days: the mean time from the step before; orders "
            "adopted from an older database count, but have no times.",
            query("crm_funnel"),
            ("month", "source", "leads", "orders", "paid", "delivered", "lead_to_order", "order_to_paid",
             "paid_to_delivered", "days_to_order", "days_to_paid", "days_to_delivered"),
            CRM,
        ), 24, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Time in status",
            "Unfinished leads and orders: how many are in each status, and the mean and longest time in days since "
            "they entered it (orders: the last status event; leads: the last audited status change).",
            query("crm_age_in_status"),
            ("entity", "status", "rows", "mean_days", "longest_days"),
            CRM,
        ), 12, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Money in and out",
            "Completed payments by booking month (UTC) and currency. Net: in − out. Currencies aren't converted.",
            query("crm_money_by_month"),
            ("month", "currency", "money_in", "money_out", "net", "payments"),
            CRM,
        ), 12, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Latest audit entries",
            "The 100 newest rows of audit_log, without their contents. Sealed: covered by the hash chain.",
            query("crm_latest_audit"),
            ("at", "action", "entity", "entity_id", "actor", "sealed"),
            CRM,
        ), 24, 10,
    )  # fmt: skip
    return result


def _attainment(layout: Layout) -> None:
    scorecard = query("month_scorecard")
    for measure in ("repairs", "revenue40"):
        title = COLUMNS[measure].title
        layout.add(
            stat_panel(
                f"{title}: attainment",
                f"Actual / the month's target. Red below 90%, green from 100%. {TARGET}",
                scorecard,
                (f"{measure}_attainment",),
                thresholds=((None, RED), (0.9, AMBER), (1, GREEN)),
            ), 4, 4,
        )  # fmt: skip
        layout.add(
            stat_panel(
                f"{title}: projection",
                "Actual + mean of the last 14 complete days × days left. For a complete month, the actual.",
                scorecard,
                (f"{measure}_projection",),
            ), 4, 4,
        )  # fmt: skip
        layout.add(
            stat_panel(
                f"{title}: needed per day",
                f"What the target still needs / days left. {TARGET}",
                scorecard,
                (f"{measure}_needed_per_day",),
            ), 4, 4,
        )  # fmt: skip


BOARDS = (executive, month_to_month, daily_vs_target, funnel, explain, data_trust, crm)
