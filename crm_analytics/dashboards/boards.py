"""The six dashboards: which panels they have, and the definition that stands in each panel's description."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from crm_analytics.dashboards.column_formats import DOLLARS
from crm_analytics.dashboards.panels import (
    AMBER,
    CRM,
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
    "A month is partial until jobs are loaded up to its last day; days count up to the last day with loaded jobs, "
    "not after today in the business timezone."
)
RATIOS = "Ratios are ratios of sums, never averages; – where the denominator is 0."
SEGMENTS = (
    "eLocals and Pro Referral leads, Google spend and calls have no segment of their own and count as OTHER, "
    "so ratios mean something by source and over all segments."
)
TARGET = "A target for ALL is compared only with an unfiltered selection."
MEASURES = {
    "leads": "Leads: eLocals rows with a cost, Pro Referral rows not passed, jobs of Google and Retention, units of "
    "Rely, NSA and Liberty.",
    "units": "Units: jobs of the type COD Service or INS Service, whatever their status.",
    "repairs": "Repairs: jobs of the type COD Repair or INS Repair, and COD Service jobs paid with more than 100.00.",
    "cost": "Cost: what eLocals charged, 20 dollars a Pro Referral lead, Google's spend; other sources cost nothing.",
    "revenue40": "Revenue40: 40 % of the payments of the jobs created in the period, refunds subtracted.",
    "profit": "Profit: Revenue40 minus cost.",
    "cpl": "CPL: cost / leads.",
    "calls": "Calls: phone calls by their date and the source that their flow belongs to.",
}


def month_to_month() -> dashboard.Dashboard:
    """The seed's first query, and its measures as series."""
    result = board(
        "crm-analytics-months",
        "Month to month by source",
        "Every measure by month and source, with its change against the month before.",
        variables=(*FILTERS, "dagster_url"),
    )
    layout = Layout(result)
    layout.add(
        table_panel(
            "Month to month by source",
            "From monthly_metrics, newest month first, the total of the sources shown above each month's sources. "
            "Changes compare with the month before; a partial month with the same number of its days. "
            f"{CLOCK} {RATIOS} {SEGMENTS}",
            query("month_to_month_by_source"),
            ("month", "days", "source", "leads", "leads_change", "units", "units_change", "repairs",
             "repairs_change", "cost", "cost_change", "revenue40", "revenue40_change", "profit", "profit_change",
             "conv_l_to_u", "conv_l_to_r", "conv_u_to_r", "cpl", "cpl_change", "revenue_gross", "jobs", "calls"),
        ), 24, 14,
    )  # fmt: skip
    for measure, title, unit in (
        ("leads", "Leads", "locale"),
        ("units", "Units", "locale"),
        ("repairs", "Repairs", "locale"),
        ("revenue40", "Revenue40", DOLLARS),
        ("cost", "Cost", DOLLARS),
        ("profit", "Profit", DOLLARS),
    ):
        layout.add(
            lines_panel(
                f"{title} by month and source",
                f"{MEASURES[measure]} From monthly_metrics.",
                query("monthly_series_by_source", measure=measure),
                unit=unit,
                bars=True,
            ), 12, 8,
        )  # fmt: skip
    return result


def daily_vs_target() -> dashboard.Dashboard:
    """The seed's second query, for Repairs and for Revenue40."""
    result = board(
        "crm-analytics-daily",
        "Daily cumulative against target",
        "Repairs and Revenue40 of one month, day by day, against pace, target, month before and projection.",
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
    for measure, title, unit in (("repairs", "Repairs", "locale"), ("revenue40", "Revenue40", DOLLARS)):
        layout.add(
            cumulative_panel(
                f"Cumulative {title} against target",
                f"{MEASURES[measure]} By day of the month, from daily_metrics and targets. Actual ends at the last "
                "loaded day. Pace: target × day / days of the month. Projection: actual + mean of the last 14 "
                f"complete days × days after it. {TARGET}",
                query(f"daily_cumulative_{measure}_vs_target"),
                unit=unit,
                columns=lines,
            ), 12, 12,
        )  # fmt: skip
    for measure, title in (("repairs", "Repairs"), ("revenue40", "Revenue40")):
        _attainment(layout, measure, title, widths=(4, 4, 4))
    layout.add(
        table_panel(
            "Targets and months",
            f"Months of the time range with metrics or a target. {CLOCK} {TARGET} {RATIOS}",
            query("targets_by_month"),
            ("month", "days", "repairs", "target_repairs", "repairs_attainment", "revenue40", "target_revenue40",
             "revenue40_attainment", "conv_l_to_r", "target_conv_l_to_r", "cpl", "target_cpl_max"),
        ), 24, 9,
    )  # fmt: skip
    return result


def executive() -> dashboard.Dashboard:
    """The month so far on one page."""
    result = board(
        "crm-analytics-executive",
        "Executive",
        "The month so far against the same days of the month before, pace and target.",
        variables=("month", *FILTERS, "dagster_url"),
    )
    layout = Layout(result)
    scorecard = query("month_scorecard")
    same_days = f"Below it the same days of the month before. {CLOCK}"
    for measure in ("leads", "units"):
        layout.add(
            stat_panel(measure.capitalize(), f"{MEASURES[measure]} {same_days}", scorecard,
                       (measure, f"{measure}_before")), 6, 6,
        )  # fmt: skip
    for measure, title in (("repairs", "Repairs"), ("revenue40", "Revenue40")):
        layout.add(
            stat_panel(
                title,
                f"{MEASURES[measure]} With the same days of the month before, the pace (target × elapsed days / days "
                f"of the month) and the target. {TARGET} {CLOCK}",
                scorecard,
                (measure, f"{measure}_before", f"{measure}_pace", f"{measure}_target"),
            ), 6, 6,
        )  # fmt: skip
    for measure in ("cost", "profit"):
        layout.add(
            stat_panel(measure.capitalize(), f"{MEASURES[measure]} {same_days}", scorecard,
                       (measure, f"{measure}_before")), 6, 6,
        )  # fmt: skip
    layout.add(
        stat_panel("Cost per lead", f"{MEASURES['cpl']} With its maximum; – without leads. {same_days} {TARGET}", scorecard,
                   ("cpl", "cpl_before", "cpl_maximum")), 6, 6,
    )  # fmt: skip
    layout.add(
        stat_panel("Conversion of leads to repairs", f"Repairs / leads; – without leads. With its target. {TARGET}", scorecard,
                   ("conv_l_to_r", "conv_l_to_r_target")), 6, 6,
    )  # fmt: skip
    for measure, title in (("repairs", "Repairs"), ("revenue40", "Revenue40")):
        _attainment(layout, measure, title, widths=(4, 4, 4))
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
    """From leads to repairs, and what each costs and brings."""
    result = board(
        "crm-analytics-funnel",
        "Funnel and unit economics",
        "Leads to units to repairs by source and segment, and what a lead costs and brings.",
        variables=(*FILTERS, "dagster_url"),
    )
    layout = Layout(result)
    layout.add(
        bars_panel(
            "Leads, units, repairs",
            f"{MEASURES['leads']} {MEASURES['units']} {MEASURES['repairs']} Of the months of the time range.",
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
            "Of the months of the time range, the total first. Cost per repair: cost / repairs. Revenue40 per lead: "
            f"Revenue40 / leads. Margin: profit / Revenue40. {RATIOS}",
            query("funnel_by_source"),
            ("source", *economics),
        ), 24, 10,
    )  # fmt: skip
    layout.add(
        table_panel(
            "By segment",
            f"COD and INS by the words in the job's type, else OTHER. {SEGMENTS} {RATIOS}",
            query("funnel_by_segment"),
            ("segment", *economics),
        ), 24, 6,
    )  # fmt: skip
    layout.add(
        lines_panel(
            "Calls by month and source",
            f"{MEASURES['calls']} All calls are in segment OTHER. From monthly_metrics.",
            query("monthly_series_by_source", measure="calls"),
            unit="locale",
            bars=True,
        ), 24, 8,
    )  # fmt: skip
    return result


def data_trust() -> dashboard.Dashboard:
    """Whether the numbers can be believed, and what to do about it."""
    result = board(
        "crm-analytics-trust",
        "Data trust",
        "How fresh and complete the data is: files, quarantine, stale months, reconciliation.",
        variables=("month", "dagster_url"),
    )
    layout = Layout(result)
    summary = query("trust_summary")
    red_above_0 = ((None, GREEN), (0.005, RED))
    amber_above_0 = ((None, GREEN), (1, AMBER))
    for column, title, description, thresholds in (
        ("difference", "Reconciliation difference", "Sum of the absolute differences in the table Reconciliation "
         "below, for the chosen month. Must be 0 unless the month is stale.", red_above_0),
        ("stale_months", "Stale months", "Months with changes that no refresh has answered yet. The sensor of stale "
         "months refreshes them; a number that stays says that it does not run.", amber_above_0),
        ("quarantined", "Quarantined records", "Records that could not be loaded and are neither replaced by a "
         "newer export nor dismissed.", amber_above_0),
        ("refused_files", "Refused files", "Files recognized but unreadable: nothing of them is loaded.",
         ((None, GREEN), (1, RED))),
        ("unrecognized_files", "Unrecognized files", "Files that fit no source.", amber_above_0),
        ("seconds_since_refresh", "Since the last refresh", "Time since a refresh of any month ended.",
         ((None, GREEN), (86400 * 1.5, AMBER), (86400 * 3, RED))),
    ):  # fmt: skip
        layout.add(stat_panel(title, description, summary, (column,), thresholds=thresholds), 4, 4)
    layout.add(
        table_panel(
            "Freshness by kind of export",
            "The newest loaded file of each kind, and the latest date in it. Days behind: from that date to today in "
            "the business timezone.",
            query("freshness"),
            ("source", "last_file", "last_exported_at", "last_loaded_at", "last_row", "days_behind"),
        ), 12, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Reconciliation",
            "For the chosen month, the layer below against the metrics: jobs and calls counted, payments of the "
            "month's jobs (and of the month, where the job is unknown) added up straight from the raw tables; monthly "
            "against daily metrics. Differences must be 0 unless the month is stale.",
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
            "Refused and unrecognized files, by their present content, with the reason and the remedy.",
            query("files_not_loaded"),
            ("path", "status", "message", "first_seen_at", "run_id"),
        ), 24, 7,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Stale months in detail",
            "Months whose metrics don't say yet what the raw tables say, since when and which tables changed.",
            query("stale_months"),
            ("month", "stale_since", "causes", "last_refreshed_at"),
        ), 8, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Last refresh of each month",
            "When it ended, how many daily rows it changed (0 confirms the month), and its Dagster run.",
            query("last_refreshes"),
            ("month", "last_refreshed_at", "changed_rows", "state", "run_id"),
        ), 10, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Sources without a rule",
            "Sources of jobs that analytics.lead_channels does not know: their leads and cost count as 0. One row "
            "there, or an alias in analytics.channel_aliases, mends it.",
            query("sources_without_rule"),
            ("source", "jobs", "first_month", "last_month_seen"),
        ), 6, 8,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Files read last",
            "The hundred files read last. Records read = new + changed + unchanged + duplicate + superseded + quarantined + "
            "totals lines.",
            query("recent_files"),
            ("finished_at", "path", "source", "status", "records_read", "inserted", "updated", "unchanged",
             "duplicates", "superseded", "quarantined", "summary_lines", "warnings", "run_id"),
        ), 24, 9,
    )  # fmt: skip
    return result


def crm() -> dashboard.Dashboard:
    """The bicycle orders' CRM, from its own database."""
    result = board(
        "crm-analytics-crm",
        "CRM",
        "Leads and orders by month and status, time in status, money in and out, and the latest audit entries.",
        variables=("dagster_url",),
        refreshes=False,
    )
    layout = Layout(result)
    by_month = "By the month of creation (UTC) and the status of today."
    layout.add(
        bars_panel("Leads by month and status", by_month, query("crm_leads_by_month"), "month",
                   ("new", "in_progress", "converted", "rejected", "other"), CRM, stacked=True), 12, 9,
    )  # fmt: skip
    layout.add(
        bars_panel("Orders by month and status", by_month, query("crm_orders_by_month"), "month",
                   ("created", "awaiting_payment", "paid", "in_delivery", "delivered", "closed", "cancelled", "other"),
                   CRM, stacked=True), 12, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Time in status",
            "Leads and orders that are not finished: how many stand in each status, the mean and the longest time "
            "in days since they entered it (orders: their last status event; leads: their last audited change of "
            "status).",
            query("crm_age_in_status"),
            ("entity", "status", "rows", "mean_days", "longest_days"),
            CRM,
        ), 12, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Money in and out",
            "Completed payments by the month of booking (UTC) and currency. Net: in − out. Currencies are not "
            "converted.",
            query("crm_money_by_month"),
            ("month", "currency", "money_in", "money_out", "net", "payments"),
            CRM,
        ), 12, 9,
    )  # fmt: skip
    layout.add(
        table_panel(
            "Latest audit entries",
            "The hundred newest rows of audit_log, without their contents. Sealed: covered by the hash chain.",
            query("crm_latest_audit"),
            ("at", "action", "entity", "entity_id", "actor", "sealed"),
            CRM,
        ), 24, 10,
    )  # fmt: skip
    return result


def _attainment(layout: Layout, measure: str, title: str, widths: tuple[int, int, int]) -> None:
    scorecard = query("month_scorecard")
    layout.add(
        stat_panel(
            f"{title}: attainment",
            f"Actual / target of the month. Red below 90 %, green from 100 %. {TARGET}",
            scorecard,
            (f"{measure}_attainment",),
            thresholds=((None, RED), (0.9, AMBER), (1, GREEN)),
        ), widths[0], 4,
    )  # fmt: skip
    layout.add(
        stat_panel(
            f"{title}: projection",
            "Actual + mean of the last 14 complete days × days left. Of a whole month, the actual.",
            scorecard,
            (f"{measure}_projection",),
        ), widths[1], 4,
    )  # fmt: skip
    layout.add(
        stat_panel(
            f"{title}: needed per day",
            f"What is missing to the target / days left. {TARGET}",
            scorecard,
            (f"{measure}_needed_per_day",),
        ), widths[2], 4,
    )  # fmt: skip


BOARDS = (executive, month_to_month, daily_vs_target, funnel, data_trust, crm)
