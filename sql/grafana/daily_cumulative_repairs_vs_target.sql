-- Daily cumulative Repairs against the month's target, from daily_metrics and targets, one row per calendar day.
-- Actuals end at the last loaded day; pace = target × day / days of the month; the projection continues from there
-- with the mean of the last 14 complete days; last_month is the month before, day by day.
WITH clock AS (
    SELECT * FROM reporting.month_clock(to_date(${month:sqlstring}, 'YYYY-MM'))
),
chosen AS (
    SELECT m.date, sum(m.repairs) AS repairs
    FROM clock c
    JOIN daily_metrics m ON m.date >= least(c.previous_month, c.last_complete_day - 13) AND m.date < c.next_month
    WHERE m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
    GROUP BY m.date
),
recent AS (
    SELECT coalesce(sum(d.repairs), 0) / 14.0 AS per_day
    FROM clock c
    LEFT JOIN chosen d ON d.date > c.last_complete_day - 14 AND d.date <= c.last_complete_day
),
calendar AS (
    SELECT c.month + k.day - 1 AS date, k.day,
        sum(coalesce(now.repairs, 0)) OVER (ORDER BY k.day) AS so_far,
        sum(coalesce(earlier.repairs, 0)) OVER (ORDER BY k.day) AS earlier
    FROM clock c
    CROSS JOIN LATERAL generate_series(1, c.days) AS k (day)
    LEFT JOIN chosen now ON now.date = c.month + k.day - 1
    LEFT JOIN chosen earlier ON earlier.date = c.previous_month + k.day - 1 AND earlier.date < c.month
)
SELECT
    d.date,
    d.day,
    CASE WHEN d.date <= c.as_of THEN d.so_far END AS actual,
    t.target_repairs * d.day / c.days::numeric AS pace,
    t.target_repairs::numeric AS target,
    CASE WHEN c.previous_month + d.day - 1 < c.month THEN d.earlier END AS last_month,
    CASE WHEN c.is_partial AND d.date >= c.as_of THEN
        max(d.so_far) FILTER (WHERE d.date = c.as_of) OVER () + r.per_day * (d.date - c.as_of)
    END AS projection
FROM clock c
CROSS JOIN calendar d
CROSS JOIN recent r
LEFT JOIN LATERAL reporting.target_of(
    c.month, ARRAY[${source:sqlstring}]::text[], ARRAY[${segment:sqlstring}]::text[]
) t ON true
ORDER BY d.day
