-- What Grafana may see: the role grafana_reader, and views of the ledger, the quarantine and the refreshes without
-- customers' data. The raw tables stay closed to it. Grafana passes on any text a viewer types, so the grants are
-- the defense; the role's settings (server.sql) only keep accidents small.

CREATE SCHEMA reporting;
COMMENT ON SCHEMA reporting IS
    'What dashboards need besides the metrics: names for their lists, the progress of months, and the state of files, '
    'quarantine and refreshes, without customers'' data.';

CREATE TABLE reporting.deployment (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    dagster_url text NOT NULL DEFAULT 'http://localhost:3000'
        CHECK (dagster_url ~ '^https?://[^\s/?#]+(/[^\s?#]*[^\s/?#])?$')
);
INSERT INTO reporting.deployment DEFAULT VALUES;
COMMENT ON TABLE reporting.deployment IS
    'One row: what dashboards must know about this installation. Kept here because dashboard files cannot read the '
    'environment.';
SELECT analytics.describe('{reporting.deployment}', $$
    only_row: Always true: there is one row.
    dagster_url: Where a browser finds the Dagster UI, without a trailing slash; links to runs begin with it.
$$);

-- Lists for the dashboards' variables.

CREATE VIEW reporting.sources AS
SELECT source FROM analytics.monthly_metrics
UNION
SELECT source FROM analytics.lead_channels
UNION
SELECT name FROM analytics.target_names WHERE NOT is_whole_business;
COMMENT ON VIEW reporting.sources IS 'Every source in metrics, channel rules or targets.';
SELECT analytics.describe('{reporting.sources}', $$
    source: Name of the source.
$$);

CREATE VIEW reporting.months AS
SELECT month FROM analytics.monthly_metrics
UNION
SELECT analytics.month_of(analytics.today());
COMMENT ON VIEW reporting.months IS 'Every month with metrics, and the current one.';
SELECT analytics.describe('{reporting.months}', $$
    month: First day of the month.
$$);

-- Pace, projection and the comparison of a partial month all count days by one clock.

CREATE FUNCTION reporting.last_loaded_day() RETURNS date LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT CASE WHEN max(d.date) IS NOT NULL THEN least(max(d.date), analytics.today()) END
    FROM analytics.daily_metrics d
    WHERE d.jobs > 0;
END;
COMMENT ON FUNCTION reporting.last_loaded_day IS
    'The last day up to which jobs are loaded, not after today (business timezone); NULL before the first job.';

CREATE FUNCTION reporting.month_clocks(p_from date, p_to date)
RETURNS TABLE (
    month date, previous_month date, next_month date, days int, as_of date, elapsed int, is_partial boolean,
    last_complete_day date
) LANGUAGE sql STABLE AS $$
    WITH loaded AS MATERIALIZED (SELECT reporting.last_loaded_day() AS day, analytics.today() AS today)
    SELECT
        m.month, (m.month - interval '1 month')::date, m.next_month, m.next_month - m.month,
        a.as_of, coalesce(a.as_of - m.month + 1, 0),
        coalesce(l.day < m.next_month - 1, true),
        CASE WHEN l.day IS NOT NULL THEN least(l.day, l.today - 1) END
    FROM (
        SELECT first::date AS month, analytics.next_month(first::date) AS next_month
        FROM generate_series(analytics.month_of(p_from), p_to::timestamp, interval '1 month') AS first
    ) m
    CROSS JOIN loaded l
    CROSS JOIN LATERAL (SELECT CASE WHEN l.day >= m.month THEN least(l.day, m.next_month - 1) END AS as_of) a
$$;
COMMENT ON FUNCTION reporting.month_clocks IS
    'The progress of each month from that of p_from to that of p_to. as_of: its last loaded day, NULL before the '
    'first; elapsed: days up to as_of; is_partial: loaded days do not reach its end; last_complete_day: the last '
    'loaded day before today, whatever the month.';

-- A dashboard's time range begins and ends at midnights of the viewer's time zone, which isn't known here: only that
-- zones are up to 14 hours ahead of UTC or 12 behind it, in steps of 15 minutes.
CREATE FUNCTION reporting.first_month(p_from timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$
    SELECT date_trunc(
        'month',
        p_from AT TIME ZONE 'UTC' + interval '14 hours' * (extract(epoch FROM p_from) % 900 = 0)::int
    )::date
$$;
COMMENT ON FUNCTION reporting.first_month IS
    'The month in which a time range begins, as its viewer sees it. A month''s first midnight in any time zone is that '
    'month; other moments count in UTC.';

CREATE FUNCTION reporting.last_month(p_from timestamptz, p_to timestamptz) RETURNS date LANGUAGE sql IMMUTABLE AS $$
    SELECT greatest(reporting.first_month(p_from), date_trunc(
        'month',
        p_to AT TIME ZONE 'UTC' - interval '12 hours 1 second' * ((extract(epoch FROM p_to) + 1) % 900 <= 1)::int
    )::date)
$$;
COMMENT ON FUNCTION reporting.last_month IS
    'The month in which a time range ends, as its viewer sees it. A month''s last midnight in any time zone, or the '
    'second before it, is that month; other moments count in UTC. Never before the first month.';

CREATE FUNCTION reporting.month_clock(p_month date)
RETURNS TABLE (
    month date, previous_month date, next_month date, days int, as_of date, elapsed int, is_partial boolean,
    last_complete_day date
) LANGUAGE sql STABLE AS $$ SELECT * FROM reporting.month_clocks(p_month, p_month) $$;
COMMENT ON FUNCTION reporting.month_clock IS
    'The progress of the month of the day p_month: month_clocks for one month.';

CREATE FUNCTION reporting.target_of(p_month date, p_sources text[], p_segments text[])
RETURNS SETOF analytics.targets LANGUAGE sql STABLE AS $$
    SELECT t.*
    FROM analytics.targets t
    WHERE (t.month, t.source_folded, t.segment) IN (
        SELECT n.month, min(n.source_folded), n.segment
        FROM analytics.target_names n
        WHERE n.month = p_month
            AND CASE
                WHEN NOT EXISTS (SELECT FROM reporting.sources s WHERE s.source <> ALL (p_sources))
                    THEN n.is_whole_business
                WHEN cardinality(p_sources) = 1 THEN n.name = p_sources[1] AND NOT n.is_whole_business
                ELSE false
            END
            AND n.segment = CASE
                WHEN p_segments @> ARRAY['COD', 'INS', 'OTHER'] THEN 'ALL'
                WHEN cardinality(p_segments) = 1 THEN p_segments[1]
            END
        GROUP BY n.month, n.segment
        -- of targets under two spellings none counts: analytics.conflicting_targets
        HAVING count(*) = 1
    )
$$;
COMMENT ON FUNCTION reporting.target_of IS
    'The month''s target for exactly this selection, if one is set: ALL for an unfiltered selection, a name for a '
    'single one, and none for anything between.';

-- The state of the data.

CREATE VIEW reporting.files AS
SELECT
    f.file_id, f.source, f.path, f.connector, f.status, f.message, f.exported_at, f.first_seen_at, f.finished_at,
    f.records_read, f.inserted, f.updated, f.unchanged, f.duplicates, f.superseded, f.quarantined, f.summary_lines,
    f.first_date, f.last_date, cardinality(f.warnings) AS warnings, f.run_id,
    f.file_id = first_value(f.file_id) OVER newest_first AS is_current
FROM raw.source_files f
WINDOW newest_first AS (PARTITION BY f.path ORDER BY f.first_seen_at DESC, f.file_id DESC);
COMMENT ON VIEW reporting.files IS 'The ledger of landing files for dashboards.';
SELECT analytics.describe('{reporting.files}', $$
    file_id: Number of the ledger entry.
    source: Kind of export; NULL if unrecognized.
    path: Path below the landing folder.
    connector: The connector that wrote it; NULL for a file that a person put there.
    status: loaded, refused, unrecognized, same_content, withdrawn or missing.
    message: Why it was not loaded, and the remedy.
    exported_at: When the export was made.
    first_seen_at: When this content was first seen at its path.
    finished_at: When it was last read.
    records_read: Records read: the sum of the seven counts that follow.
    inserted: Records that made a new row.
    updated: Records that changed a row.
    unchanged: Records with nothing new.
    duplicates: Identical records beyond the first.
    superseded: Records that differ from what a newer export already loaded.
    quarantined: Records in quarantine.
    summary_lines: Lines with totals and repeated headers, which are skipped.
    first_date: Earliest date among the accepted records.
    last_date: Latest date among the accepted records.
    warnings: How many warnings it was accepted with.
    run_id: The Dagster run that read it.
    is_current: Whether this is the content seen last at its path.
$$);

-- Every table that a load writes has updated_at, record_no and the name of its source, so that a new source appears
-- by itself. Its first date is the day that a row belongs to; covered_to is the last day of a month's sum. With the
-- owner's rights: the reader sees the days only. Each table has its own statement, which reads an entry of an index.
CREATE FUNCTION reporting.newest_days() RETURNS TABLE (source text, newest date)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    relation regclass;
    day text;
    counted text;
BEGIN
    FOR source, relation, day, counted IN
        SELECT
            c.relname, c.oid, (array_agg(a.attname ORDER BY a.attnum) FILTER (WHERE a.atttypid = 'date'::regtype))[1],
            CASE WHEN bool_or(a.attname = 'covered_to') THEN 'least(covered_to, analytics.today())' END
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace IN ('raw'::regnamespace, 'analytics'::regnamespace) AND c.relkind = 'r' AND a.attnum > 0
            AND NOT a.attisdropped
        GROUP BY c.relname, c.oid
        HAVING array_agg(a.attname) @> '{updated_at, record_no}'
        ORDER BY c.relname
    LOOP
        EXECUTE format(
            'SELECT max(%s) FROM %s WHERE %I <= analytics.today()', coalesce(counted, quote_ident(day)), relation, day
        ) INTO newest;
        RETURN NEXT;
    END LOOP;
END $$;
COMMENT ON FUNCTION reporting.newest_days IS
    'The day of the newest row of every table that exports fill, by source. A row of a later day than today, such as '
    'one with a mistyped year, would hide that exports have stopped: it is left out. Of a month''s total the last day '
    'that it covers counts, at most today.';
REVOKE ALL ON FUNCTION reporting.newest_days() FROM PUBLIC;

CREATE VIEW reporting.freshness AS
SELECT
    s.source, f.path AS last_file, f.exported_at AS last_exported_at, l.last_loaded_at, s.newest AS last_row,
    analytics.today() - s.newest AS days_behind
FROM reporting.newest_days() s
LEFT JOIN LATERAL (
    SELECT max(a.finished_at) AS last_loaded_at
    FROM raw.source_files a
    WHERE a.source = s.source AND a.status = 'loaded'
) l ON true
LEFT JOIN LATERAL (
    SELECT b.path, b.exported_at
    FROM raw.source_files b
    WHERE b.source = s.source AND b.status = 'loaded'
    ORDER BY b.exported_at DESC, b.path DESC
    LIMIT 1
) f ON true;
COMMENT ON VIEW reporting.freshness IS 'One row per kind of export: its last file, and the newest day of its rows.';
SELECT analytics.describe('{reporting.freshness}', $$
    source: Kind of export.
    last_file: The newest loaded file; NULL if there has never been one.
    last_exported_at: When that file was exported.
    last_loaded_at: When a file of this kind was last loaded; NULL if there has never been one.
    last_row: The newest day of its rows, as reporting.newest_days tells it; NULL if there is none.
    days_behind: Days from last_row to today in the business timezone.
$$);

-- What was found is left out, because it may be a customer's. Reasons then group well, too.
CREATE VIEW reporting.quarantine AS
SELECT
    r.source, why.reason, count(*) AS records, count(DISTINCT r.file_id) AS files,
    min(r.rejected_at) AS oldest, max(f.path) AS example_file
FROM raw.rejected_rows r
JOIN raw.source_files f ON f.file_id = r.file_id
CROSS JOIN LATERAL (
    SELECT DISTINCT raw.reason_text(found.reason - '{found,accepted,remedy}'::text[]) AS reason
    FROM jsonb_array_elements(r.reasons) AS found (reason)
) why
WHERE r.status = 'open'
GROUP BY r.source, why.reason;
COMMENT ON VIEW reporting.quarantine IS
    'Open quarantined records by source and reason; a record with two reasons counts under both.';
SELECT analytics.describe('{reporting.quarantine}', $$
    source: Kind of export.
    reason: The column and what is wrong with it, without what was found and what is accepted.
    records: Open records.
    files: Number of files that contain them.
    oldest: When the oldest of them was quarantined.
    example_file: One of the files.
$$);

CREATE VIEW reporting.quarantined_records AS
SELECT source, count(*) AS records
FROM raw.rejected_rows
WHERE status = 'open'
GROUP BY source;
COMMENT ON VIEW reporting.quarantined_records IS 'Open quarantined records by source, each counted once.';
SELECT analytics.describe('{reporting.quarantined_records}', $$
    source: Kind of export.
    records: Open records.
$$);

CREATE VIEW reporting.month_status AS
SELECT
    coalesce(r.month, s.month) AS month, r.finished_at AS last_refreshed_at, r.changed_rows, r.run_id, s.stale_since,
    s.causes
FROM (
    SELECT DISTINCT ON (month) month, finished_at, changed_rows, run_id
    FROM analytics.refresh_log
    ORDER BY month, finished_at DESC, refresh_id DESC
) r
FULL JOIN (
    SELECT month, min(noted_at) AS stale_since, string_agg(DISTINCT cause, ', ' ORDER BY cause) AS causes
    FROM analytics.stale_months
    GROUP BY month
) s ON s.month = r.month;
COMMENT ON VIEW reporting.month_status IS 'The last refresh of each month, and since when and why it is stale.';
SELECT analytics.describe('{reporting.month_status}', $$
    month: First day of the month.
    last_refreshed_at: End of the last refresh; NULL if it was never refreshed.
    changed_rows: Daily rows that this refresh wrote or removed.
    run_id: The Dagster run of that refresh, or NULL.
    stale_since: When the oldest unanswered change was noted; NULL if up to date.
    causes: Which tables changed.
$$);

CREATE FUNCTION reporting.changes_of(p_revision bigint, p_sources text[], p_segments text[]) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT string_agg(
        CASE
            WHEN m.net = 0 THEN m.measure || ': ' || m.gained || ' moved'
            ELSE m.measure || CASE WHEN m.net > 0 THEN ' +' ELSE ' ' END || m.net
        END,
        ', ' ORDER BY m.measure
    )
    FROM (
        SELECT c.measure, sum(c.new - c.old) AS net, sum(greatest(c.new - c.old, 0)) AS gained
        FROM analytics.revision_changes c
        WHERE c.revision_id = p_revision AND (p_sources IS NULL OR c.source = ANY (p_sources))
            AND (p_segments IS NULL OR c.segment = ANY (p_segments))
        GROUP BY c.measure
    ) m
$$;
COMMENT ON FUNCTION reporting.changes_of IS
    'What a revision changed in these sources and segments (NULL: in all): by how much each measure''s sum, or '
    'where the sum is as before, how much of it moved. NULL if nothing.';

CREATE VIEW reporting.revisions AS
SELECT
    r.revision_id, r.month, r.revised_at, l.run_id, c.changed_values, c.dollars,
    reporting.changes_of(r.revision_id, NULL, NULL) AS changes,
    coalesce(why.causes, 'nothing was noted: a trigger was off, or metrics were changed by hand') AS causes
FROM analytics.revisions r
JOIN analytics.refresh_log l ON l.refresh_id = r.refresh_id
CROSS JOIN LATERAL (
    SELECT
        count(*) AS changed_values,
        coalesce(sum(abs(new - old)) FILTER (WHERE measure IN ('cost', 'revenue_gross')), 0) AS dollars
    FROM analytics.revision_changes
    WHERE revision_id = r.revision_id
) c
CROSS JOIN LATERAL (
    SELECT string_agg(
        concat_ws(
            ' ', y.table_name, y.operation, coalesce('from ' || f.path, 'by ' || y.changed_by),
            '(' || y.rows || CASE WHEN y.rows = 1 THEN ' row)' ELSE ' rows)' END
        ),
        ', ' ORDER BY y.noted_at, y.table_name, y.operation, f.path
    ) AS causes
    FROM analytics.revision_causes y
    LEFT JOIN raw.source_files f ON f.file_id = y.file_id
    WHERE y.revision_id = r.revision_id
) why;
COMMENT ON VIEW reporting.revisions IS
    'Changes of closed months, each with what it changed and why. analytics.revision_changes and revision_causes have '
    'the details.';
SELECT analytics.describe('{reporting.revisions}', $$
    revision_id: Number of the revision.
    month: First day of the month.
    revised_at: When the refresh that made it began.
    run_id: The Dagster run of that refresh, or NULL.
    changed_values: How many stored measures it changed.
    dollars: By how much it changed cost and gross revenue, without signs.
    changes: By how much it changed each measure, added up over sources and segments.
    causes: The tables that changed, how, by which file or login, and in how many rows.
$$);

-- Shown beside the metrics, which count them only where a channel's rule says so.
CREATE VIEW reporting.workiz_leads AS
SELECT
    analytics.month_of(w.lead_date) AS month,
    analytics.source_name(coalesce(min(s.source), nullif(min(raw.tidy(w.source)), '')), '') AS source,
    count(*) AS leads,
    count(*) FILTER (WHERE NOT analytics.is_workiz_lead(w.status)) AS passed,
    count(*) FILTER (WHERE w.converted) AS converted,
    count(*) FILTER (WHERE analytics.is_workiz_lead(w.status) AND c.source IS NOT NULL) AS counted
FROM raw.workiz_leads w
LEFT JOIN analytics.spellings s ON s.folded = w.source_folded
LEFT JOIN analytics.channel_rules c
    ON c.lead_rule = 'workiz_leads' AND c.source = analytics.source_name(s.source, w.source_folded)
        AND analytics.in_force(w.lead_date, c.valid_from, c.valid_to)
GROUP BY analytics.month_of(w.lead_date), analytics.source_name(s.source, w.source_folded);
COMMENT ON VIEW reporting.workiz_leads IS
    'Leads of the field-service system by month of creation and source, whether metrics count them or not.';
SELECT analytics.describe('{reporting.workiz_leads}', $$
    month: First day of the month.
    source: Name of the source, by analytics.spellings; else as given.
    leads: Leads.
    passed: Those of them that are Passed.
    converted: Those that became a job.
    counted: Those that are leads in the metrics, because a channel has the rule workiz_leads.
$$);

CREATE VIEW reporting.sources_without_rule AS
SELECT m.source, sum(m.jobs)::bigint AS jobs, min(m.month) AS first_month, max(m.month) AS last_month
FROM analytics.monthly_metrics m
WHERE m.jobs > 0 AND NOT EXISTS (SELECT FROM analytics.lead_channels c WHERE c.source = m.source)
GROUP BY m.source;
COMMENT ON VIEW reporting.sources_without_rule IS
    'Sources of jobs for which analytics.lead_channels has no rule: their leads and costs count as 0.';
SELECT analytics.describe('{reporting.sources_without_rule}', $$
    source: Channel name.
    jobs: Jobs with this source.
    first_month: First month with such jobs.
    last_month: Last month with such jobs.
$$);

-- With the owner's rights: the reader sees totals only. Jobs, calls and payments are also counted in the raw tables,
-- bypassing the facts.
CREATE FUNCTION reporting.reconciliation(p_month date)
RETURNS TABLE (measure text, expected numeric, found numeric, difference numeric)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
    WITH raw_rows (position, measure, expected) AS (
        VALUES
        (1, 'Jobs', (
            SELECT count(*)
            FROM raw.jobs
            WHERE job_date >= p_month AND job_date < analytics.next_month(p_month)
        )),
        (5, 'Calls', (
            SELECT count(*)
            FROM raw.calls
            WHERE call_date >= p_month AND call_date < analytics.next_month(p_month)
        )),
        (7, 'Payments in dollars', coalesce((
            SELECT sum(p.amount)
            FROM raw.jobs j
            JOIN raw.payments p ON p.job_id = j.job_id AND p.counts
            WHERE j.job_date >= p_month AND j.job_date < analytics.next_month(p_month)
        ), 0) + coalesce((
            SELECT sum(amount)
            FROM raw.payments
            WHERE job_id IS NULL AND counts AND paid_date >= p_month AND paid_date < analytics.next_month(p_month)
        ), 0))
    ),
    daily AS (
        SELECT ARRAY[
            sum(jobs), sum(units), sum(repairs), sum(leads), sum(calls), sum(cost), sum(revenue_gross)
        ] AS totals
        FROM analytics.daily_metrics
        WHERE date >= p_month AND date < analytics.next_month(p_month)
    ),
    monthly AS (
        SELECT ARRAY[
            sum(jobs), sum(units), sum(repairs), sum(leads), sum(calls), sum(cost), sum(revenue_gross)
        ] AS totals
        FROM analytics.monthly_metrics
        WHERE month = p_month
    ),
    differences AS (
        SELECT
            layer, ARRAY[
                sum(jobs), sum(units), sum(repairs), sum(leads), sum(calls), sum(cost), sum(revenue_gross)
            ] AS net, ARRAY[
                sum(abs(jobs)), sum(abs(units)), sum(abs(repairs)), sum(abs(leads)), sum(abs(calls)), sum(abs(cost)),
                sum(abs(revenue_gross))
            ] AS gross
        FROM (
            SELECT 2 AS layer, d.*
            FROM analytics.daily_differences(p_month, analytics.next_month(p_month)) d
            UNION ALL
            SELECT 3, m.*
            FROM analytics.monthly_differences(p_month, analytics.next_month(p_month)) m
        ) rows_that_differ
        GROUP BY layer
    )
    SELECT
        c.measure || ': ' || c.layers, coalesce(c.expected, 0), coalesce(c.found, 0), coalesce(c.difference, 0)
    FROM (
        SELECT
            1 AS layer, 'raw against daily metrics' AS layers, r.position, r.measure, r.expected,
            d.totals[r.position] AS found, coalesce(d.totals[r.position], 0) - r.expected AS difference
        FROM raw_rows r
        CROSS JOIN daily d
        UNION ALL
        SELECT
            l.layer, l.layers, m.position, m.measure, l.totals[m.position] - coalesce(o.net[m.position], 0),
            l.totals[m.position], o.gross[m.position]
        FROM (
            SELECT 2 AS layer, 'facts against daily metrics' AS layers, totals FROM daily
            UNION ALL
            SELECT 3, 'daily against monthly metrics', totals FROM monthly
        ) l
        LEFT JOIN differences o ON o.layer = l.layer
        CROSS JOIN unnest(
            ARRAY['Jobs', 'Units', 'Repairs', 'Leads', 'Calls', 'Cost in dollars', 'Gross revenue in dollars']
        ) WITH ORDINALITY AS m (measure, position)
    ) c
    ORDER BY c.layer, c.position
$$;
COMMENT ON FUNCTION reporting.reconciliation IS
    'For the month that begins on p_month: the total of the layer below, the total of the metrics, and the difference, '
    'which is 0 unless the month is stale. Between facts and metrics it adds up what differs in any row, without '
    'signs: totals may agree although rows are under another day, source or segment.';
REVOKE ALL ON FUNCTION reporting.reconciliation(date) FROM PUBLIC;

GRANT USAGE ON SCHEMA analytics, reporting TO grafana_reader;
GRANT SELECT ON analytics.business, analytics.daily_metrics, analytics.monthly_metrics, analytics.daily_by_source,
    analytics.monthly_by_source, analytics.targets, analytics.lead_channels, analytics.channel_aliases,
    analytics.source_names, analytics.spellings, analytics.target_names, analytics.stale_months, analytics.refresh_log,
    analytics.revisions, analytics.revision_changes
    TO grafana_reader;
GRANT SELECT ON reporting.deployment, reporting.sources, reporting.months, reporting.files, reporting.freshness,
    reporting.quarantine, reporting.quarantined_records, reporting.month_status, reporting.revisions,
    reporting.sources_without_rule, reporting.workiz_leads
    TO grafana_reader;
GRANT EXECUTE ON FUNCTION reporting.newest_days(), reporting.reconciliation(date) TO grafana_reader;
