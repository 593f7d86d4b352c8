-- What Grafana may see: the role grafana_reader, and views of the ledger, the quarantine and the refreshes without
-- customers' data. The raw tables stay closed to it. Grafana passes on any text a viewer types, so the grants are
-- the defence; the role's settings (server.sql) only keep accidents small.

CREATE SCHEMA reporting;
COMMENT ON SCHEMA reporting IS 'What dashboards need beside the metrics: names for their lists, the months'' clock, and the state of files, quarantine and refreshes without customers'' data.';

CREATE TABLE reporting.deployment (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    dagster_url text NOT NULL DEFAULT 'http://localhost:3000' CHECK (dagster_url ~ '^https?://[^\s/?#]+(/[^\s?#]*[^\s/?#])?$')
);
INSERT INTO reporting.deployment DEFAULT VALUES;
COMMENT ON TABLE reporting.deployment IS 'One row: what dashboards must know of this installation. Kept here because dashboard files cannot read the environment.';
COMMENT ON COLUMN reporting.deployment.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN reporting.deployment.dagster_url IS 'Where a browser finds the Dagster UI, without a slash at the end; links to runs begin with it.';

-- Lists for the dashboards' variables.

CREATE VIEW reporting.sources AS
SELECT source FROM analytics.monthly_metrics
UNION SELECT source FROM analytics.lead_channels
UNION SELECT source FROM analytics.targets WHERE source <> 'ALL';
COMMENT ON VIEW reporting.sources IS 'Every source that metrics, channel rules or targets know.';
COMMENT ON COLUMN reporting.sources.source IS 'Channel name.';

CREATE VIEW reporting.months AS
SELECT month FROM analytics.monthly_metrics
UNION SELECT analytics.month_of(analytics.today());
COMMENT ON VIEW reporting.months IS 'Every month with metrics, and the current one.';
COMMENT ON COLUMN reporting.months.month IS 'First day of the month.';

-- Pace, projection and the comparison of a partial month all count days by one clock.

CREATE FUNCTION reporting.last_loaded_day() RETURNS date LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN max(d.date) IS NOT NULL THEN least(max(d.date), analytics.today()) END
    FROM analytics.daily_metrics d WHERE d.jobs > 0;
END;
COMMENT ON FUNCTION reporting.last_loaded_day() IS 'The last day up to which jobs are loaded, not after today (business timezone); NULL before the first job.';

CREATE FUNCTION reporting.month_clocks(p_from date, p_to date)
RETURNS TABLE (
    month date, previous_month date, next_month date, days int, as_of date, elapsed int, is_partial boolean,
    last_complete_day date
) LANGUAGE sql STABLE AS $$
    WITH loaded AS MATERIALIZED (SELECT reporting.last_loaded_day() AS day, analytics.today() AS today)
    SELECT m.month, m.previous_month, m.next_month, m.next_month - m.month,
        CASE WHEN l.day >= m.month THEN least(l.day, m.next_month - 1) END,
        CASE WHEN l.day >= m.month THEN least(l.day, m.next_month - 1) - m.month + 1 ELSE 0 END,
        coalesce(l.day < m.next_month - 1, true),
        CASE WHEN l.day IS NOT NULL THEN least(l.day, l.today - 1) END
    FROM (
        SELECT first::date AS month, (first - interval '1 month')::date AS previous_month,
            (first + interval '1 month')::date AS next_month
        FROM generate_series(date_trunc('month', p_from::timestamp), p_to::timestamp, interval '1 month') AS first
    ) m
    CROSS JOIN loaded l
$$;
COMMENT ON FUNCTION reporting.month_clocks(date, date) IS 'Where each month stands from that of p_from to that of p_to. as_of: its last loaded day, NULL before the first; elapsed: days up to as_of; is_partial: loaded days do not reach its end; last_complete_day: the last loaded day before today, whatever the month.';

CREATE FUNCTION reporting.month_clock(p_month date)
RETURNS TABLE (
    month date, previous_month date, next_month date, days int, as_of date, elapsed int, is_partial boolean,
    last_complete_day date
) LANGUAGE sql STABLE AS $$ SELECT * FROM reporting.month_clocks(p_month, p_month) $$;
COMMENT ON FUNCTION reporting.month_clock(date) IS 'Where the month of the day p_month stands: month_clocks for one month.';

CREATE FUNCTION reporting.target_of(p_month date, p_sources text[], p_segments text[])
RETURNS SETOF analytics.targets LANGUAGE sql STABLE AS $$
    SELECT t.*
    FROM analytics.targets t
    WHERE t.month = p_month
        AND t.source = CASE
            WHEN NOT EXISTS (SELECT FROM reporting.sources s WHERE s.source <> ALL (p_sources)) THEN 'ALL'
            WHEN cardinality(p_sources) = 1 THEN p_sources[1]
        END
        AND t.segment = CASE
            WHEN p_segments @> ARRAY['COD', 'INS', 'OTHER'] THEN 'ALL'
            WHEN cardinality(p_segments) = 1 THEN p_segments[1]
        END
$$;
COMMENT ON FUNCTION reporting.target_of(date, text[], text[]) IS 'The month''s target for exactly this selection, if one is set: ALL for an unfiltered selection, a name for a single one, and none for anything between.';

-- The state of the data.

CREATE VIEW reporting.files AS
SELECT f.file_id, f.source, f.path, f.status, f.message, f.exported_at, f.first_seen_at, f.finished_at,
    f.records_read, f.inserted, f.updated, f.unchanged, f.duplicates, f.superseded, f.quarantined, f.summary_lines,
    f.first_date, f.last_date, cardinality(f.warnings) AS warnings, f.run_id,
    f.file_id = first_value(f.file_id) OVER (PARTITION BY f.path ORDER BY f.first_seen_at DESC, f.file_id DESC) AS is_current
FROM raw.source_files f;
COMMENT ON VIEW reporting.files IS 'The ledger of landing files for dashboards.';
COMMENT ON COLUMN reporting.files.file_id IS 'Number of the ledger entry.';
COMMENT ON COLUMN reporting.files.source IS 'Kind of export; NULL where unrecognized.';
COMMENT ON COLUMN reporting.files.path IS 'Path below the landing folder.';
COMMENT ON COLUMN reporting.files.status IS 'loaded, refused, unrecognized or same_content.';
COMMENT ON COLUMN reporting.files.message IS 'Why it was not loaded, and the remedy.';
COMMENT ON COLUMN reporting.files.exported_at IS 'When the export was made.';
COMMENT ON COLUMN reporting.files.first_seen_at IS 'When this content was first seen.';
COMMENT ON COLUMN reporting.files.finished_at IS 'When it was last read.';
COMMENT ON COLUMN reporting.files.records_read IS 'Records read: the sum of the seven counts that follow.';
COMMENT ON COLUMN reporting.files.inserted IS 'Records that made a new row.';
COMMENT ON COLUMN reporting.files.updated IS 'Records that changed a row.';
COMMENT ON COLUMN reporting.files.unchanged IS 'Records that said nothing new.';
COMMENT ON COLUMN reporting.files.duplicates IS 'Identical records beyond the first.';
COMMENT ON COLUMN reporting.files.superseded IS 'Records about which a newer export said something else.';
COMMENT ON COLUMN reporting.files.quarantined IS 'Records in quarantine.';
COMMENT ON COLUMN reporting.files.summary_lines IS 'Total lines, skipped.';
COMMENT ON COLUMN reporting.files.first_date IS 'Earliest date among the accepted records.';
COMMENT ON COLUMN reporting.files.last_date IS 'Latest date among the accepted records.';
COMMENT ON COLUMN reporting.files.warnings IS 'How many warnings it was accepted with.';
COMMENT ON COLUMN reporting.files.run_id IS 'The Dagster run that read it.';
COMMENT ON COLUMN reporting.files.is_current IS 'Whether this is the content that was seen last at its path.';

CREATE VIEW reporting.freshness AS
SELECT s.source, f.path AS last_file, f.exported_at AS last_exported_at, l.last_loaded_at, l.last_row,
    analytics.today() - l.last_row AS days_behind
FROM (VALUES ('jobs'), ('payments'), ('calls'), ('elocals_leads'), ('proref_leads'), ('google_spend')) AS s (source)
LEFT JOIN LATERAL (
    SELECT max(a.finished_at) AS last_loaded_at, max(a.last_date) AS last_row
    FROM raw.source_files a WHERE a.source = s.source AND a.status = 'loaded'
) l ON true
LEFT JOIN LATERAL (
    SELECT b.path, b.exported_at FROM raw.source_files b
    WHERE b.source = s.source AND b.status = 'loaded' ORDER BY b.exported_at DESC, b.path DESC LIMIT 1
) f ON true;
COMMENT ON VIEW reporting.freshness IS 'One row a kind of export: the last file and the last day that it brought.';
COMMENT ON COLUMN reporting.freshness.source IS 'Kind of export.';
COMMENT ON COLUMN reporting.freshness.last_file IS 'The newest loaded file; NULL if there never was one.';
COMMENT ON COLUMN reporting.freshness.last_exported_at IS 'When that file was exported.';
COMMENT ON COLUMN reporting.freshness.last_loaded_at IS 'When a file of this kind was last loaded.';
COMMENT ON COLUMN reporting.freshness.last_row IS 'The latest date in any loaded file.';
COMMENT ON COLUMN reporting.freshness.days_behind IS 'Days from last_row to today in the business timezone.';

-- What was found is left out, because it may be a customer's. Reasons then group well, too.
CREATE VIEW reporting.quarantine AS
SELECT r.source, why.reason, count(*) AS records, count(DISTINCT r.file_id) AS files,
    min(r.rejected_at) AS oldest, max(f.path) AS example_file
FROM raw.rejected_rows r
JOIN raw.source_files f ON f.file_id = r.file_id
CROSS JOIN LATERAL (
    SELECT DISTINCT raw.reason_text(found.reason - '{found,accepted,remedy}'::text[]) AS reason
    FROM jsonb_array_elements(r.reasons) AS found (reason)
) why
WHERE r.status = 'open'
GROUP BY r.source, why.reason;
COMMENT ON VIEW reporting.quarantine IS 'Open quarantined records by source and reason; a record with two reasons counts under both.';
COMMENT ON COLUMN reporting.quarantine.source IS 'Kind of export.';
COMMENT ON COLUMN reporting.quarantine.reason IS 'The column and what is wrong with it, without what was found and what is accepted.';
COMMENT ON COLUMN reporting.quarantine.records IS 'Open records.';
COMMENT ON COLUMN reporting.quarantine.files IS 'Files that they stand in.';
COMMENT ON COLUMN reporting.quarantine.oldest IS 'When the oldest of them was quarantined.';
COMMENT ON COLUMN reporting.quarantine.example_file IS 'One of the files.';

CREATE VIEW reporting.quarantined_records AS
SELECT source, count(*) AS records FROM raw.rejected_rows WHERE status = 'open' GROUP BY source;
COMMENT ON VIEW reporting.quarantined_records IS 'Open quarantined records by source, each counted once.';
COMMENT ON COLUMN reporting.quarantined_records.source IS 'Kind of export.';
COMMENT ON COLUMN reporting.quarantined_records.records IS 'Open records.';

CREATE VIEW reporting.month_status AS
SELECT coalesce(r.month, s.month) AS month, r.finished_at AS last_refreshed_at, r.changed_rows, r.run_id,
    s.stale_since, s.causes
FROM (
    SELECT DISTINCT ON (month) month, finished_at, changed_rows, run_id
    FROM analytics.refresh_log ORDER BY month, finished_at DESC, refresh_id DESC
) r
FULL JOIN (
    SELECT month, min(noted_at) AS stale_since, string_agg(DISTINCT cause, ', ' ORDER BY cause) AS causes
    FROM analytics.stale_months GROUP BY month
) s ON s.month = r.month;
COMMENT ON VIEW reporting.month_status IS 'The last refresh of each month, and since when and why it is stale.';
COMMENT ON COLUMN reporting.month_status.month IS 'First day of the month.';
COMMENT ON COLUMN reporting.month_status.last_refreshed_at IS 'End of the last refresh; NULL if it never was refreshed.';
COMMENT ON COLUMN reporting.month_status.changed_rows IS 'Daily rows that this refresh wrote or removed.';
COMMENT ON COLUMN reporting.month_status.run_id IS 'The Dagster run of that refresh, if one did it.';
COMMENT ON COLUMN reporting.month_status.stale_since IS 'When the oldest unanswered change was noted; NULL: up to date.';
COMMENT ON COLUMN reporting.month_status.causes IS 'Which tables changed.';

CREATE VIEW reporting.sources_without_rule AS
SELECT m.source, sum(m.jobs)::bigint AS jobs, min(m.month) AS first_month, max(m.month) AS last_month
FROM analytics.monthly_metrics m
WHERE m.jobs > 0 AND NOT EXISTS (SELECT FROM analytics.lead_channels c WHERE c.source = m.source)
GROUP BY m.source;
COMMENT ON VIEW reporting.sources_without_rule IS 'Sources of jobs for which analytics.lead_channels has no rule: their leads and costs count as 0.';
COMMENT ON COLUMN reporting.sources_without_rule.source IS 'Channel name.';
COMMENT ON COLUMN reporting.sources_without_rule.jobs IS 'Jobs with this source.';
COMMENT ON COLUMN reporting.sources_without_rule.first_month IS 'First month with such jobs.';
COMMENT ON COLUMN reporting.sources_without_rule.last_month IS 'Last month with such jobs.';

-- Counts the raw tables for one month, bypassing the facts, with the owner's rights: the reader sees totals only.
CREATE FUNCTION reporting.reconciliation(p_month date)
RETURNS TABLE (measure text, expected numeric, found numeric, difference numeric)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    WITH daily AS (
        SELECT sum(d.jobs) AS jobs, sum(d.calls) AS calls, sum(d.leads) AS leads, sum(d.cost) AS cost,
            sum(d.revenue_gross) AS revenue_gross
        FROM analytics.daily_metrics d
        WHERE d.date >= p_month AND d.date < (p_month + interval '1 month')::date
    ), monthly AS (
        SELECT sum(m.leads) AS leads, sum(m.cost) AS cost, sum(m.revenue_gross) AS revenue_gross
        FROM analytics.monthly_metrics m WHERE m.month = p_month
    ), compared (position, measure, expected, found) AS (
        SELECT 1, 'Jobs: raw against daily metrics', (
            SELECT count(*)::numeric FROM raw.jobs j
            WHERE j.job_date >= p_month AND j.job_date < (p_month + interval '1 month')::date
        ), daily.jobs FROM daily
        UNION ALL
        SELECT 2, 'Calls: raw against daily metrics', (
            SELECT count(*) FROM raw.calls k
            WHERE k.call_date >= p_month AND k.call_date < (p_month + interval '1 month')::date
        ), daily.calls FROM daily
        UNION ALL
        SELECT 3, 'Payments in dollars: raw against daily metrics', coalesce((
            SELECT sum(p.amount) FROM raw.jobs j JOIN raw.payments p ON p.job_id = j.job_id AND p.counts
            WHERE j.job_date >= p_month AND j.job_date < (p_month + interval '1 month')::date
        ), 0) + coalesce((
            SELECT sum(p.amount) FROM raw.payments p
            WHERE p.job_id IS NULL AND p.counts
                AND p.paid_date >= p_month AND p.paid_date < (p_month + interval '1 month')::date
        ), 0), daily.revenue_gross FROM daily
        UNION ALL
        SELECT 4, 'Leads: daily against monthly metrics', daily.leads, monthly.leads FROM daily, monthly
        UNION ALL
        SELECT 5, 'Cost in dollars: daily against monthly metrics', daily.cost, monthly.cost FROM daily, monthly
        UNION ALL
        SELECT 6, 'Gross revenue in dollars: daily against monthly metrics', daily.revenue_gross,
            monthly.revenue_gross FROM daily, monthly
    )
    SELECT c.measure, coalesce(c.expected, 0), coalesce(c.found, 0), coalesce(c.found, 0) - coalesce(c.expected, 0)
    FROM compared c ORDER BY c.position
$$;
COMMENT ON FUNCTION reporting.reconciliation(date) IS 'For the month that begins on p_month: what the layer below says, what the metrics say, and the difference, which is 0 unless the month is stale.';
REVOKE ALL ON FUNCTION reporting.reconciliation(date) FROM PUBLIC;

GRANT USAGE ON SCHEMA analytics, reporting TO grafana_reader;
GRANT SELECT ON analytics.business, analytics.daily_metrics, analytics.monthly_metrics, analytics.daily_by_source,
    analytics.monthly_by_source, analytics.targets, analytics.lead_channels, analytics.channel_aliases,
    analytics.stale_months, analytics.refresh_log TO grafana_reader;
GRANT SELECT ON reporting.deployment, reporting.sources, reporting.months, reporting.files, reporting.freshness,
    reporting.quarantine, reporting.quarantined_records, reporting.month_status, reporting.sources_without_rule
    TO grafana_reader;
GRANT EXECUTE ON FUNCTION reporting.reconciliation(date) TO grafana_reader;
