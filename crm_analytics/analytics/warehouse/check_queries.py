"""The SQL behind the asset checks: each query returns one row per problem, and none when all is well.

`%(start)s` and `%(end)s` are the run's half-open range of months.
"""

from __future__ import annotations

from dataclasses import dataclass

from crm_analytics.analytics.ingest.sources.declaration import Source

#: Payment statuses that exports are known to carry. A new one counts as revenue until the rule says otherwise.
KNOWN_PAYMENT_STATUSES = (
    "", "paid", "completed", "complete", "succeeded", "success", "approved", "captured", "settled", "processed",
    "refunded", "refund", "partially refunded", "deposited", "cleared",
    "failed", "pending", "voided", "declined",
)  # fmt: skip


@dataclass(frozen=True)
class Query:
    """A check over the analytics database.

    Attributes:
        name: the check's name in the UI.
        asset: the asset it belongs to, `schema/table`.
        description: what it proves, and what to do when it is red.
        sql: returns the problems; no rows means passed.
        error: True makes the check an error that blocks what is downstream in the same run; False, a warning.
        after: another asset whose rows it reads, so that a run computes them first.
    """

    name: str
    asset: str
    description: str
    sql: str
    error: bool = False
    after: str | None = None

    @property
    def windowed(self) -> bool:
        """Whether the query covers only the run's months."""
        return "%(start)s" in self.sql


QUERIES = (
    Query(
        "unrecognized_files",
        "raw/jobs",
        "Files in the landing folder that match no source. Remedy: move them into their source's folder, or delete them.",
        """
        SELECT path, message
        FROM raw.source_files f
        WHERE status = 'unrecognized' AND NOT EXISTS (
            SELECT FROM raw.source_files newer
            WHERE newer.path = f.path AND newer.first_seen_at > f.first_seen_at
        )
        ORDER BY path
        """,
    ),
    Query(
        "sources_without_rule",
        "raw/jobs",
        "Job sources that no channel rule covers: they have no leads and no cost. Remedy: add an alias to"
        " analytics.channel_aliases, or a rule to analytics.lead_channels.",
        """
        SELECT j.source, count(*) AS jobs, max(j.job_date)::text AS newest
        FROM analytics.job_facts_between(%(start)s::date, %(end)s::date) j
        WHERE NOT EXISTS (
            SELECT FROM analytics.channel_rules c
            WHERE c.source = j.source AND j.job_date >= c.valid_from
                AND (c.valid_to IS NULL OR j.job_date < c.valid_to)
        )
        GROUP BY j.source
        ORDER BY jobs DESC
        """,
    ),
    Query(
        "shared_job_numbers",
        "raw/jobs",
        "Job numbers that several jobs share: payments that give only the number cannot be linked. Remedy: correct"
        " the number of one of the jobs.",
        """
        SELECT job_number, string_agg(job_id, ', ' ORDER BY job_id) AS jobs
        FROM raw.jobs
        WHERE job_number IS NOT NULL
        GROUP BY job_number
        HAVING count(*) > 1
        ORDER BY job_number
        """,
    ),
    Query(
        "unknown_statuses",
        "raw/payments",
        "Payment statuses not seen before. They count as revenue. Remedy: ask the maintainers whether they should.",
        f"""
        SELECT status, count(*) AS payments, sum(amount)::text AS amount
        FROM raw.payments
        WHERE raw.fold(status) <> ALL (ARRAY{list(KNOWN_PAYMENT_STATUSES)!r})
        GROUP BY status
        ORDER BY payments DESC
        """,
    ),
    Query(
        "payments_linked",
        "raw/payments",
        "Every payment is linked to the job that it references. When red, a trigger on raw.payments or raw.jobs was"
        " disabled. Remedy: enable it again, then set job_id of these payments to the expected one.",
        """
        SELECT p.payment_id, p.job_ref, p.job_id, coalesce(by_id.job_id, by_number.job_id) AS expected
        FROM raw.payments p
        LEFT JOIN raw.jobs by_id ON by_id.job_id = p.job_id_ref
        LEFT JOIN raw.jobs_by_number by_number ON by_number.job_number = p.job_number_ref
        WHERE p.job_id IS DISTINCT FROM coalesce(by_id.job_id, by_number.job_id)
        """,
        error=True,
    ),
    Query(
        "closed_months_covered",
        "raw/google_spend",
        "Closed months that Google's spend does not cover to their last day, or not at all although an earlier month"
        " is covered. Remedy: export the month again; if Google is no longer used, add a rule to"
        " analytics.lead_channels with another cost_rule from that month on.",
        """
        SELECT m.month::text, s.covered_to::text
        FROM (
            SELECT generate_series(min(month), analytics.month_of(analytics.today()) - 1, interval '1 month')::date
            FROM raw.google_spend
        ) AS m (month)
        JOIN analytics.channel_rules c
            ON c.cost_rule = 'google_spend' AND m.month >= c.valid_from AND (c.valid_to IS NULL OR m.month < c.valid_to)
        LEFT JOIN (SELECT month, max(covered_to) AS covered_to FROM raw.google_spend GROUP BY month) s
            ON s.month = m.month
        WHERE s.covered_to IS NULL OR s.covered_to < (m.month + interval '1 month' - interval '1 day')::date
        ORDER BY m.month
        """,
    ),
    Query(
        "targets_without_source",
        "analytics/targets",
        "Targets whose source has no numbers in any month, so that they are compared with nothing. Remedy: spell the"
        " source as the dashboards do, or add its spelling to analytics.channel_aliases.",
        """
        SELECT t.source, string_agg(DISTINCT to_char(t.month, 'YYYY-MM'), ', ') AS months
        FROM analytics.targets_without_source
        JOIN analytics.targets t USING (month, source_folded, segment)
        GROUP BY t.source
        ORDER BY t.source
        """,
        after="analytics/monthly_metrics",
    ),
    Query(
        "conflicting_targets",
        "analytics/targets",
        "Targets of one month and segment for one source, under several spellings. Dashboards use none of them. Remedy:"
        " delete the wrong ones from analytics.targets.",
        """
        SELECT month::text, name AS source, segment, spellings FROM analytics.conflicting_targets ORDER BY 1, 2, 3
        """,
    ),
    Query(
        "daily_values_sane",
        "analytics/daily_metrics",
        "No count is negative, units and repairs do not exceed jobs, every row has a source and some value.",
        """
        SELECT date::text, source, segment, jobs, units, repairs, leads, calls, cost::text
        FROM analytics.daily_metrics
        WHERE date >= %(start)s AND date < %(end)s AND (
            least(jobs, units, repairs, leads, calls) < 0 OR units > jobs OR repairs > jobs OR btrim(source) = ''
            OR (jobs, leads, calls, cost, revenue_gross) = (0, 0, 0, 0, 0)
        )
        """,
        error=True,
    ),
    Query(
        "revenue_adds_up",
        "analytics/daily_metrics",
        "The revenue of every month that is not stale equals the counted payments of its jobs plus its orphan"
        " payments. Remedy: refresh the month; if it stays red, a trigger was disabled.",
        """
        WITH paid AS (
            SELECT analytics.month_of(coalesce(j.job_date, p.paid_date)) AS month, sum(p.amount) AS amount
            FROM raw.payments p
            LEFT JOIN raw.jobs j ON j.job_id = p.job_id
            WHERE p.counts AND coalesce(j.job_date, p.paid_date) >= %(start)s
                AND coalesce(j.job_date, p.paid_date) < %(end)s
            GROUP BY 1
        ), shown AS (
            SELECT analytics.month_of(date) AS month, sum(revenue_gross) AS amount
            FROM analytics.daily_metrics
            WHERE date >= %(start)s AND date < %(end)s
            GROUP BY 1
        )
        SELECT month::text, paid.amount::text AS payments, shown.amount::text AS metrics
        FROM paid FULL JOIN shown USING (month)
        WHERE coalesce(paid.amount, 0) <> coalesce(shown.amount, 0)
            AND month NOT IN (SELECT s.month FROM analytics.stale_months s)
        ORDER BY month
        """,
        error=True,
    ),
    Query(
        "metrics_equal_facts",
        "analytics/daily_metrics",
        "Every measure of every row equals the facts added up, in every month that is not stale; numbers are how much"
        " differs. When red, a rule was changed without a migration, a trigger was disabled, or metrics were changed by"
        " hand. Remedy: SELECT analytics.queue_every_month('why'), then refresh.",
        """
        SELECT analytics.month_of(date)::text AS month, count(*) AS rows, sum(abs(jobs)) AS jobs,
            sum(abs(units)) AS units, sum(abs(repairs)) AS repairs, sum(abs(leads)) AS leads, sum(abs(calls)) AS calls,
            sum(abs(cost))::text AS cost, sum(abs(revenue_gross))::text AS revenue_gross
        FROM analytics.daily_differences(%(start)s::date, %(end)s::date)
        WHERE analytics.month_of(date) NOT IN (SELECT s.month FROM analytics.stale_months s)
        GROUP BY 1
        ORDER BY 1
        """,
        error=True,
    ),
    Query(
        "months_outside_partitions",
        "analytics/daily_metrics",
        "Months with raw data that no partition covers: they are loaded but not refreshed. Remedy: set an earlier"
        " START_MONTH, or correct dates in the future.",
        """
        SELECT month::text, (SELECT count(*) FROM analytics.stale_months s WHERE s.month = known.month) AS changes
        FROM analytics.every_month() AS known (month)
        WHERE month < %(first_partition)s OR month > analytics.month_of(analytics.today())
        ORDER BY month
        """,
    ),
    Query(
        "daily_adds_up_to_monthly",
        "analytics/monthly_metrics",
        "Every row of monthly_metrics is the sum of its daily_metrics. Remedy: refresh the month.",
        """
        SELECT month::text, source, segment
        FROM analytics.monthly_differences(%(start)s::date, %(end)s::date)
        ORDER BY month, source, segment
        """,
        error=True,
    ),
    Query(
        "closed_months",
        "analytics/monthly_metrics",
        "Changes of the last seven days to months that had ended, with their causes. Remedy: tell those who use these"
        " numbers; if a cause is wrong, take its file back (crm-analytics rebuild) or correct the rows again.",
        """
        SELECT to_char(month, 'YYYY-MM') AS month, to_char(revised_at, 'YYYY-MM-DD HH24:MI TZ') AS revised, changes, causes
        FROM reporting.revisions
        WHERE revised_at > now() - interval '7 days'
        ORDER BY revised_at DESC, dollars DESC, month DESC
        """,
    ),
)


def quarantine_sql() -> str:
    """Open quarantined records of a source (`%(source)s`), newest first."""
    return """
        SELECT f.path, r.record_no, r.line_no, r.row_key, (
                SELECT string_agg(raw.reason_text(found.reason), '; ')
                FROM jsonb_array_elements(r.reasons) AS found (reason)
            ) AS reasons
        FROM raw.rejected_rows r
        JOIN raw.source_files f USING (file_id)
        WHERE r.status = 'open' AND r.source = %(source)s
        ORDER BY r.rejected_id DESC
    """


def quarantine_reasons_sql() -> str:
    """The ten most frequent reasons of a source's quarantine (`%(source)s`), without what was found."""
    return (
        "SELECT reason, records FROM reporting.quarantine WHERE source = %(source)s"
        " ORDER BY records DESC, reason LIMIT 10"
    )


def vanished_sql(source: Source) -> str:
    """Returns the query for rows of a source that a newer export of their dates lacks, newest first."""
    return f"""
        SELECT v.row_key, t.{source.date_column}::text AS date, f.path AS not_in
        FROM raw.vanished_rows v
        JOIN {source.table} t ON {source.fragments["row_key"].as_string(None)} = v.row_key
        JOIN raw.source_files f ON f.file_id = v.file_id
        WHERE v.source = '{source.name}' AND v.dismissed_at IS NULL ORDER BY 2 DESC, 1
        """


_NO_NEWER_CONTENT = "NOT EXISTS (SELECT FROM raw.source_files newer WHERE newer.path = f.path AND newer.first_seen_at > f.first_seen_at)"


def refused_sql() -> str:
    """Refused files of a source (`%(source)s`) whose path has no newer content."""
    return f"""
        SELECT path, message FROM raw.source_files f
        WHERE status = 'refused' AND source = %(source)s AND {_NO_NEWER_CONTENT} ORDER BY path
        """


def totals_sql() -> str:
    """Loaded files of a source (`%(source)s`) that state another total than is accepted from them.

    A file whose quarantined records are all closed or dismissed is answered.
    """
    return f"""
        SELECT path, stated_total::text, accepted_total::text, (accepted_total - stated_total)::text AS difference,
            quarantined, duplicates
        FROM raw.source_files f
        WHERE status = 'loaded' AND source = %(source)s AND NOT total_agrees AND {_NO_NEWER_CONTENT} AND (
            quarantined = 0 OR EXISTS (SELECT FROM raw.rejected_rows r WHERE r.file_id = f.file_id AND r.status = 'open')
        )
        ORDER BY path
        """
