-- One number of the metrics by month, and for all chosen months: what its rows add up to, and what is stored. The two
-- may differ only while a month is stale.
WITH chosen AS (
    SELECT to_date(m, 'YYYY-MM') AS month FROM unnest(ARRAY[${month:sqlstring}]::text[]) AS m
),
explained AS (
    SELECT
        e.month, count(*) AS rows, sum(e.amount) FILTER (WHERE e.part <> 'denominator') AS amount,
        sum(e.amount) FILTER (WHERE e.part = 'denominator') AS denominator
    FROM reporting.explain(
        ARRAY(SELECT c.month FROM chosen c), ${metric:sqlstring}, ARRAY[${source:sqlstring}]::text[],
        ARRAY[${segment:sqlstring}]::text[]
    ) AS e
    GROUP BY e.month
),
stored AS (
    SELECT
        m.month, sum(m.jobs) AS jobs, sum(m.units) AS units, sum(m.repairs) AS repairs, sum(m.leads) AS leads,
        sum(m.calls) AS calls, sum(m.cost) AS cost, sum(m.revenue_gross) AS revenue_gross
    FROM monthly_metrics m
    WHERE m.month IN (SELECT c.month FROM chosen c)
        AND m.source = ANY(ARRAY[${source:sqlstring}]::text[]) AND m.segment = ANY(ARRAY[${segment:sqlstring}]::text[])
    GROUP BY m.month
),
compared AS (
    SELECT
        c.month, coalesce(sum(e.rows), 0) AS rows,
        CASE
            WHEN is_ratio(${metric:sqlstring}) THEN ratio(coalesce(sum(e.amount), 0), sum(e.denominator))
            ELSE coalesce(sum(e.amount), 0)
        END AS explained,
        metric_of(
            ${metric:sqlstring}, coalesce(sum(s.jobs), 0), coalesce(sum(s.units), 0), coalesce(sum(s.repairs), 0),
            coalesce(sum(s.leads), 0), coalesce(sum(s.calls), 0), coalesce(sum(s.cost), 0),
            coalesce(sum(s.revenue_gross), 0)
        ) AS stored,
        array_agg(c.month) AS months
    FROM chosen c
    LEFT JOIN explained e ON e.month = c.month
    LEFT JOIN stored s ON s.month = c.month
    GROUP BY GROUPING SETS ((c.month), ())
    HAVING grouping(c.month) = 0 OR count(*) > 1
)
SELECT
    coalesce(to_char(c.month, 'YYYY-MM'), 'Total') AS month, c.rows, c.explained, c.stored,
    c.explained - c.stored AS difference, q.stale_since, q.causes
FROM compared c
CROSS JOIN LATERAL (
    SELECT min(s.noted_at) AS stale_since, string_agg(DISTINCT s.cause, ', ' ORDER BY s.cause) AS causes
    FROM stale_months s
    WHERE s.month = ANY(c.months)
) AS q
ORDER BY c.month DESC
