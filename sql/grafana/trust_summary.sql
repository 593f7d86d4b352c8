-- The state of the data in one row; every number except the age of the last refresh should be 0.
SELECT
    (SELECT count(*) FROM reporting.month_status WHERE stale_since IS NOT NULL) AS stale_months,
    (SELECT coalesce(sum(records), 0) FROM reporting.quarantined_records) AS quarantined,
    (SELECT count(*) FROM reporting.files WHERE is_current AND status = 'refused') AS refused_files,
    (SELECT count(*) FROM reporting.files WHERE is_current AND status = 'unrecognized') AS unrecognized_files,
    (SELECT count(*) FROM reporting.sources_without_rule) AS sources_without_rule,
    (SELECT sum(abs(difference)) FROM reporting.reconciliation(to_date(${month:sqlstring}, 'YYYY-MM'))) AS difference,
    (SELECT extract(epoch FROM now() - max(finished_at)) FROM refresh_log) AS seconds_since_refresh
