-- What the open lake has of each month (docs/decisions/lake.md). A refresh does nothing for it: analytics.refresh_log
-- says which months changed, whether there is a lake or not. Without a lake, nobody reads or writes these tables.

CREATE TABLE analytics.lake_writes (
    write_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
COMMENT ON TABLE analytics.lake_writes IS
    'One row for each write to the lake. The lake''s tables name the last write of each franchise, so that an older '
    'one never replaces a newer one, and a restored database notices that the lake is ahead of it.';
SELECT analytics.describe('{analytics.lake_writes}', $$
    write_id: Number of the write.
    started_at: When it began, before it read anything.
    finished_at: When all tables of the lake had it; NULL if it runs or was interrupted: the next one repeats it.
$$);

CREATE TABLE analytics.lake_months (
    month date PRIMARY KEY,
    version bigint NOT NULL,
    write_id bigint NOT NULL REFERENCES analytics.lake_writes
);
COMMENT ON TABLE analytics.lake_months IS 'The version of each month that the lake has for certain.';
SELECT analytics.describe('{analytics.lake_months}', $$
    month: First day of the month.
    version: The refresh whose numbers the lake has, in analytics.refresh_log, or a later one that changed nothing.
    write_id: The write that brought it there.
$$);

-- The facts may have changed where no daily row did: two jobs swap a payment. Then an entry of the queue was answered.
CREATE VIEW analytics.lake_pending AS
SELECT
    l.month, max(l.refresh_id) AS version, min(l.finished_at) AS since,
    l.month IN (SELECT s.month FROM analytics.stale_months s) AS is_stale
FROM analytics.refresh_log l
LEFT JOIN analytics.lake_months m ON m.month = l.month
WHERE (l.stale_rows > 0 OR l.changed_rows > 0) AND l.refresh_id > coalesce(m.version, 0)
GROUP BY l.month;
COMMENT ON VIEW analytics.lake_pending IS
    'Months that a refresh may have changed since the lake got them: all of history where there is no lake, or where '
    'it was switched on just now. They stay until the lake has them for certain.';
SELECT analytics.describe('{analytics.lake_pending}', $$
    month: First day of the month.
    version: Its newest refresh, in analytics.refresh_log.
    since: When the first refresh that the lake lacks ended.
    is_stale: Whether the month waits for another refresh: the lake gets it after that, when facts and metrics agree.
$$);
