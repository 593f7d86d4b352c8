-- Why a number is what it is: the rows that it is made of, each with its amount, its file and, in words, the rule by
-- which it counts. Nothing is decided here: the facts name the rule (repair_rule, lead_rule, cost_rule), and functions
-- beside the rules make words from its name.

-- The only list of metrics, in the order in which people are told of them. A constant, so that the planner knows which
-- measures it needs.
CREATE FUNCTION analytics.metric_parts() RETURNS json LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN '{
    "jobs": {"jobs": "whole"},
    "units": {"units": "whole"},
    "repairs": {"repairs": "whole"},
    "leads": {"leads": "whole"},
    "calls": {"calls": "whole"},
    "cost": {"cost": "whole"},
    "revenue_gross": {"revenue_gross": "whole"},
    "revenue40": {"revenue_gross": "whole"},
    "profit": {"revenue_gross": "whole", "cost": "whole"},
    "conv_l_to_u": {"units": "numerator", "leads": "denominator"},
    "conv_l_to_r": {"repairs": "numerator", "leads": "denominator"},
    "conv_u_to_r": {"repairs": "numerator", "units": "denominator"},
    "cpl": {"cost": "numerator", "leads": "denominator"}
}'::json;
COMMENT ON FUNCTION analytics.metric_parts IS
    'Every metric with the measures that it is made of, and what their rows are to it: whole, they add up to it; '
    'numerator or denominator, it is a ratio.';

CREATE FUNCTION analytics.part_of(metric text, measure text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN analytics.metric_parts() -> metric ->> measure;
COMMENT ON FUNCTION analytics.part_of IS
    'What a measure''s rows are to a metric, by analytics.metric_parts; NULL: nothing.';

CREATE FUNCTION analytics.is_ratio(metric text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (analytics.metric_parts() -> metric)::text LIKE '%"denominator"%';
COMMENT ON FUNCTION analytics.is_ratio IS 'Whether a metric is a ratio of two measures; all others add up.';

CREATE FUNCTION analytics.metric_of(
    metric text, jobs numeric, units numeric, repairs numeric, leads numeric, calls numeric, cost numeric,
    revenue_gross numeric
) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE metric
    WHEN 'jobs' THEN jobs
    WHEN 'units' THEN units
    WHEN 'repairs' THEN repairs
    WHEN 'leads' THEN leads
    WHEN 'calls' THEN calls
    WHEN 'cost' THEN cost
    WHEN 'revenue_gross' THEN revenue_gross
    WHEN 'revenue40' THEN analytics.revenue40(revenue_gross)
    WHEN 'profit' THEN analytics.revenue40(revenue_gross) - cost
    WHEN 'conv_l_to_u' THEN analytics.ratio(units, leads)
    WHEN 'conv_l_to_r' THEN analytics.ratio(repairs, leads)
    WHEN 'conv_u_to_r' THEN analytics.ratio(repairs, units)
    WHEN 'cpl' THEN analytics.ratio(cost, leads)
END;
COMMENT ON FUNCTION analytics.metric_of IS 'The metric of this name, from the sums of the seven measures.';

CREATE FUNCTION analytics.require_metric(metric text) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    IF analytics.metric_parts() -> metric IS NOT NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION 'no such metric: %', coalesce(metric, 'NULL')
        USING ERRCODE = 'invalid_parameter_value', HINT = 'Metrics: ' || (
            SELECT string_agg(m.name, ', ' ORDER BY m.position)
            FROM json_object_keys(analytics.metric_parts()) WITH ORDINALITY AS m (name, position)
        ) || '.';
END $$;
COMMENT ON FUNCTION analytics.require_metric IS 'Refuses a metric that daily_metrics does not have.';

CREATE FUNCTION analytics.payment_words(metric text, amount numeric, paid_date date, job_id text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE metric WHEN 'revenue_gross' THEN '' ELSE 'revenue40 of ' END
    || CASE WHEN amount < 0 THEN -amount || ' refunded on ' ELSE amount || ' paid on ' END
    || to_char(paid_date, 'YYYY-MM-DD') || coalesce(' for job ' || job_id, ' for a job that is not known yet');
COMMENT ON FUNCTION analytics.payment_words IS
    'What a payment is to a metric, and for which job; NULL means that it is unknown.';

-- One branch per fact and measure. Where the metric is a constant, the planner keeps only those that it is made of.
CREATE FUNCTION analytics.explain_between(p_from date, p_to date, p_metric text, p_source text, p_segment text)
RETURNS TABLE (
    part text, kind text, id text, day date, source text, segment text, amount numeric, rule text, file text,
    record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        c.part, c.kind, c.id, c.day, c.source, c.segment, c.amount, c.rule,
        CASE WHEN c.kind = 'spend' THEN c.files ELSE f.path END, c.record_no
    FROM (
        SELECT
            analytics.part_of(p_metric, 'jobs') AS part, 'job' AS kind, j.job_id AS id, j.job_date AS day, j.source,
            j.segment, 1::numeric AS amount,
            analytics.job_words(j.type) AS rule, j.file_id, j.record_no, NULL::text AS files
        FROM analytics.job_facts_between(p_from, p_to) j
        WHERE analytics.part_of(p_metric, 'jobs') IS NOT NULL
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'units'), 'job', j.job_id, j.job_date, j.source, j.segment, 1::numeric,
            j.type || ', a unit by its type', j.file_id, j.record_no, NULL::text
        FROM analytics.job_facts_between(p_from, p_to) j
        WHERE analytics.part_of(p_metric, 'units') IS NOT NULL AND j.is_unit
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'repairs'), 'job', j.job_id, j.job_date, j.source, j.segment, 1::numeric,
            analytics.repair_words(j.repair_rule, j.type, j.paid_total), j.file_id, j.record_no, NULL::text
        FROM analytics.job_facts_between(p_from, p_to) j
        WHERE analytics.part_of(p_metric, 'repairs') IS NOT NULL AND j.is_repair
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'leads'), CASE l.origin WHEN 'jobs' THEN 'job' ELSE 'lead' END, l.lead_id,
            l.lead_date, l.source, l.segment, 1::numeric,
            analytics.lead_words(l.lead_rule, l.source, l.status IS NOT NULL, l.price), l.file_id, l.record_no,
            NULL::text
        FROM analytics.lead_facts_between(p_from, p_to) l
        WHERE analytics.part_of(p_metric, 'leads') IS NOT NULL
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'calls'), 'call', k.call_id, k.call_date, k.source, k.segment, 1::numeric,
            'every call counts, under the source of its flow', k.file_id, k.record_no, NULL::text
        FROM analytics.call_facts_between(p_from, p_to) k
        WHERE analytics.part_of(p_metric, 'calls') IS NOT NULL
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'cost'), CASE l.origin WHEN 'jobs' THEN 'job' ELSE 'lead' END, l.lead_id,
            l.lead_date, l.source, l.segment, CASE p_metric WHEN 'profit' THEN -l.cost ELSE l.cost END,
            analytics.cost_words(l.cost_rule, l.source, l.cost), l.file_id, l.record_no, NULL::text
        FROM analytics.lead_facts_between(p_from, p_to) l
        WHERE analytics.part_of(p_metric, 'cost') IS NOT NULL AND l.cost <> 0
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'cost'), 'spend', to_char(s.month, 'YYYY-MM') COLLATE "C", s.date, s.source,
            s.segment, CASE p_metric WHEN 'profit' THEN -s.cost ELSE s.cost END,
            'day ' || (s.date - s.month + 1) || ' of ' || s.days || ' of ' || s.month_total, NULL::bigint, NULL::int, (
                SELECT string_agg(m.path, ', ' ORDER BY m.path)
                FROM raw.source_files m
                WHERE m.file_id = ANY (s.file_ids)
            )
        FROM analytics.daily_spend_between(p_from, p_to) s
        WHERE analytics.part_of(p_metric, 'cost') IS NOT NULL
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'revenue_gross'), 'payment', p.payment_id, j.job_date, j.source, j.segment,
            CASE p_metric WHEN 'revenue_gross' THEN p.amount ELSE analytics.revenue40(p.amount) END,
            analytics.payment_words(p_metric, p.amount, p.paid_date, j.job_id), p.file_id, p.record_no, NULL::text
        FROM analytics.job_facts_between(p_from, p_to) j
        JOIN raw.payments p ON p.job_id = j.job_id AND p.counts
        WHERE analytics.part_of(p_metric, 'revenue_gross') IS NOT NULL
        UNION ALL
        SELECT
            analytics.part_of(p_metric, 'revenue_gross'), 'payment', o.payment_id, o.paid_date, o.source, o.segment,
            CASE p_metric WHEN 'revenue_gross' THEN o.amount ELSE analytics.revenue40(o.amount) END,
            analytics.payment_words(p_metric, o.amount, o.paid_date, NULL), o.file_id, o.record_no, NULL::text
        FROM analytics.orphan_payments_between(p_from, p_to) o
        WHERE analytics.part_of(p_metric, 'revenue_gross') IS NOT NULL
    ) c
    LEFT JOIN raw.source_files f ON f.file_id = c.file_id
    WHERE analytics.require_metric(p_metric) AND (p_source IS NULL OR c.source = p_source)
        AND (p_segment IS NULL OR c.segment = p_segment)
$$;
COMMENT ON FUNCTION analytics.explain_between IS
    'One row for each contribution to a metric on the days [p_from, p_to), of a source and segment (NULL: all). The '
    'amounts add up to the metric exactly; those of a ratio to its numerator and its denominator, as part says. kind '
    'is job, payment, lead, call or spend, id the row''s key, day the one on which it counts: a payment''s is that of '
    'its job. file is NULL for a row written by hand. Leads that cost nothing are no contribution to the cost.';

-- For Grafana. Raw tables stay closed to its role, so this runs with the owner's rights, and has ids, dates, amounts,
-- sources, files and words, which quote no other text of an export. A call's id is left out: it is a hash of two
-- telephone numbers and a minute, and there are few enough of them to try all.

CREATE FUNCTION reporting.explain(p_months date[], p_metric text, p_sources text[], p_segments text[])
RETURNS TABLE (
    month date, part text, kind text, id text, day date, source text, segment text, amount numeric, rule text,
    file text, record_no int
) LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    chosen date;
BEGIN
    FOR chosen IN SELECT DISTINCT m FROM unnest(p_months) m ORDER BY m LOOP
        -- planned for this month and metric, without what they don't need
        RETURN QUERY EXECUTE '
            SELECT
                $1, e.part, e.kind, CASE WHEN e.kind <> ''call'' THEN e.id END, e.day, e.source, e.segment, e.amount,
                e.rule, e.file, e.record_no
            FROM analytics.explain_between($1, analytics.next_month($1), $2, NULL, NULL) e
            WHERE e.source = ANY ($3) AND e.segment = ANY ($4)'
            USING chosen, p_metric, p_sources, p_segments;
    END LOOP;
END $$;
COMMENT ON FUNCTION reporting.explain IS
    'analytics.explain_between for the months that begin on these days, of these sources and segments, without the ids '
    'of calls.';
REVOKE ALL ON FUNCTION reporting.explain(date[], text, text[], text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION reporting.explain(date[], text, text[], text[]) TO grafana_reader;

CREATE FUNCTION reporting.explain_link(p_months date[], p_sources text[], p_segments text[]) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT string_agg('var-' || v.name || '=' || encoded.value, '&' ORDER BY v.name, v.value)
    FROM (
        SELECT 'month' AS name, to_char(m, 'YYYY-MM') AS value FROM unnest(p_months) m
        UNION ALL
        SELECT 'source', s FROM unnest(p_sources) s
        UNION ALL
        SELECT 'segment', g FROM unnest(p_segments) g
    ) v
    -- what would end the value or change it; browsers encode the rest
    CROSS JOIN LATERAL (
        SELECT replace(replace(replace(replace(replace(
            v.value, '%', '%25'), '&', '%26'), '#', '%23'), '+', '%2B'), ' ', '%20'
        ) AS value
    ) encoded
$$;
COMMENT ON FUNCTION reporting.explain_link IS
    'Months, sources and segments as the dashboard Explain has them in its address: for links from the rows of tables.';
