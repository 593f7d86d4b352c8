-- The facts: every rule of the business stands here once, and metrics only add facts up. Each fact is a
-- function of a date range [p_from, p_to), which PostgreSQL inlines, and a view of the same name over all time.

CREATE FUNCTION analytics.source_name(alias_source text, folded text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(alias_source, nullif(initcap(folded), ''), 'Unattributed');
COMMENT ON FUNCTION analytics.source_name(text, text) IS 'A source''s name: what channel_aliases says, else the folded text with capitals, blank as Unattributed.';

CREATE FUNCTION analytics.month_of(day date) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN date_trunc('month', day::timestamp)::date;
COMMENT ON FUNCTION analytics.month_of(date) IS 'First day of the month that a day lies in.';

CREATE FUNCTION analytics.segment_of(type_folded text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN type_folded ~ '\mcod\M' THEN 'COD' WHEN type_folded ~ '\mins\M' THEN 'INS' ELSE 'OTHER' END;
COMMENT ON FUNCTION analytics.segment_of(text) IS 'COD if the type contains the word COD, else INS if it contains the word INS, else OTHER. Word, not substring: Installation is OTHER.';

-- What was paid is added up in one of two ways, and constant conditions drop the other before it is planned: a short
-- range reads the payments of its own jobs only, a range of more than a year reads all payments in the order of the
-- index, which needs neither a second look at jobs nor a hash table of them. (A million jobs, 1.5 million payments: one
-- month 0.08 s, the metrics of all time 4.4 s. With the first way alone all time took 6 s; with the second alone a
-- month took over 2 s.)
CREATE FUNCTION analytics.job_facts_between(p_from date, p_to date)
RETURNS TABLE (
    job_id text, job_number text, job_date date, month date, source text, segment text, type text, status text,
    is_unit boolean, is_repair boolean, is_lead boolean, lead_cost numeric, paid_total numeric, technician text,
    zip text, file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT j.job_id, j.job_number, j.job_date, analytics.month_of(j.job_date),
        n.source, analytics.segment_of(j.type_folded), j.type, j.status, n.is_unit,
        j.type_folded IN ('cod repair', 'ins repair')
            OR (j.type_folded = 'cod service' AND coalesce(p.paid_total, 0) > 100),
        c.source IS NOT NULL, coalesce(c.cost_per_lead, 0),
        coalesce(p.paid_total, 0), j.technician, j.zip, j.file_id, j.record_no
    FROM raw.jobs j
    LEFT JOIN analytics.channel_aliases a ON a.alias_folded = j.source_folded
    CROSS JOIN LATERAL (
        SELECT analytics.source_name(a.source, j.source_folded) AS source,
            j.type_folded IN ('cod service', 'ins service') AS is_unit
    ) n
    -- decided here and not in lead_facts, so that metrics join jobs and payments once
    LEFT JOIN analytics.channel_rules c ON c.source = n.source
        AND j.job_date >= c.valid_from AND (c.valid_to IS NULL OR j.job_date < c.valid_to)
        AND (c.lead_rule = 'jobs' OR (c.lead_rule = 'units' AND n.is_unit))
    LEFT JOIN (
        SELECT paid.job_id, sum(paid.amount) AS paid_total
        FROM raw.payments paid
        JOIN raw.jobs ranged ON ranged.job_id = paid.job_id
        WHERE p_to <= p_from + 400 AND paid.counts AND ranged.job_date >= p_from AND ranged.job_date < p_to
        GROUP BY paid.job_id
        UNION ALL
        SELECT paid.job_id, sum(paid.amount)
        FROM raw.payments paid
        WHERE p_to > p_from + 400 AND paid.counts AND paid.job_id IS NOT NULL
        GROUP BY paid.job_id
    ) p ON p.job_id = j.job_id
    WHERE j.job_date >= p_from AND j.job_date < p_to
$$;
COMMENT ON FUNCTION analytics.job_facts_between(date, date) IS 'One row a job dated in [p_from, p_to): source, segment, whether it is a unit, a repair and a lead by its channel''s rule, and what was paid for it.';

CREATE FUNCTION analytics.lead_facts_between(p_from date, p_to date)
RETURNS TABLE (
    lead_id text, origin text, lead_date date, month date, source text, segment text, cost numeric,
    file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT e.lead_id, 'elocals_leads', e.lead_date, analytics.month_of(e.lead_date), c.source, c.lead_segment,
        CASE c.cost_rule WHEN 'sum_cost' THEN e.cost WHEN 'per_lead' THEN c.cost_per_lead ELSE 0 END,
        e.file_id, e.record_no
    FROM raw.elocals_leads e
    JOIN analytics.channel_rules c ON c.lead_rule = 'elocals_paid'
        AND e.lead_date >= c.valid_from AND (c.valid_to IS NULL OR e.lead_date < c.valid_to)
    WHERE e.cost > 0 AND e.lead_date >= p_from AND e.lead_date < p_to
    UNION ALL
    SELECT r.lead_id, 'proref_leads', r.lead_date, analytics.month_of(r.lead_date), c.source, c.lead_segment,
        coalesce(c.cost_per_lead, 0), r.file_id, r.record_no
    FROM raw.proref_leads r
    JOIN analytics.channel_rules c ON c.lead_rule = 'proref_not_passed'
        AND r.lead_date >= c.valid_from AND (c.valid_to IS NULL OR r.lead_date < c.valid_to)
    WHERE raw.fold(r.current_status) <> 'passed' AND r.lead_date >= p_from AND r.lead_date < p_to
    UNION ALL
    SELECT j.job_id, 'jobs', j.job_date, j.month, j.source, j.segment, j.lead_cost, j.file_id, j.record_no
    FROM analytics.job_facts_between(p_from, p_to) j
    WHERE j.is_lead
$$;
COMMENT ON FUNCTION analytics.lead_facts_between(date, date) IS 'One row a lead dated in [p_from, p_to), by the channel rule in force, with its cost (Google''s spend is in daily_spend).';

CREATE FUNCTION analytics.daily_spend_between(p_from date, p_to date)
RETURNS TABLE (date date, month date, source text, segment text, cost numeric) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT m.month + k.day - 1, m.month, c.source, c.lead_segment,
        round(m.total * k.day / m.days, 2) - round(m.total * (k.day - 1) / m.days, 2)
    FROM (
        SELECT s.month, sum(s.amount) AS total, max(s.covered_to) - s.month + 1 AS days
        FROM raw.google_spend s
        WHERE s.month > p_from - 31 AND s.month < p_to
        GROUP BY s.month
    ) m
    JOIN analytics.channel_rules c ON c.cost_rule = 'google_spend'
        AND m.month >= c.valid_from AND (c.valid_to IS NULL OR m.month < c.valid_to)
    CROSS JOIN LATERAL generate_series(1, m.days) AS k (day)
    WHERE m.month + k.day - 1 >= p_from AND m.month + k.day - 1 < p_to
$$;
COMMENT ON FUNCTION analytics.daily_spend_between(date, date) IS 'Google''s cost by day in [p_from, p_to): the month''s total spread over the days that it covers, so that the days add up to it exactly.';

CREATE FUNCTION analytics.orphan_payments_between(p_from date, p_to date)
RETURNS TABLE (
    payment_id text, job_ref text, paid_date date, month date, source text, segment text, amount numeric,
    file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT p.payment_id, p.job_ref, p.paid_date, analytics.month_of(p.paid_date), 'Unattributed', 'OTHER', p.amount,
        p.file_id, p.record_no
    FROM raw.payments p
    WHERE p.job_id IS NULL AND p.counts AND p.paid_date >= p_from AND p.paid_date < p_to
$$;
COMMENT ON FUNCTION analytics.orphan_payments_between(date, date) IS 'Counted payments of [p_from, p_to) whose job is unknown: revenue under Unattributed/OTHER on the day paid, until the job arrives.';

CREATE FUNCTION analytics.call_facts_between(p_from date, p_to date)
RETURNS TABLE (
    call_id text, call_date date, month date, source text, segment text, answered boolean, duration_seconds int,
    file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT k.call_id, k.call_date, analytics.month_of(k.call_date), analytics.source_name(a.source, k.flow_folded),
        'OTHER', k.answered, k.duration_seconds, k.file_id, k.record_no
    FROM raw.calls k
    LEFT JOIN analytics.channel_aliases a ON a.alias_folded = k.flow_folded
    WHERE k.call_date >= p_from AND k.call_date < p_to
$$;
COMMENT ON FUNCTION analytics.call_facts_between(date, date) IS 'One row a call of [p_from, p_to), under its flow''s source; calls have no segment of their own: OTHER.';

CREATE VIEW analytics.job_facts AS SELECT * FROM analytics.job_facts_between('-infinity', 'infinity');
CREATE VIEW analytics.lead_facts AS SELECT * FROM analytics.lead_facts_between('-infinity', 'infinity');
CREATE VIEW analytics.daily_spend AS SELECT * FROM analytics.daily_spend_between('-infinity', 'infinity');
CREATE VIEW analytics.orphan_payments AS SELECT * FROM analytics.orphan_payments_between('-infinity', 'infinity');
CREATE VIEW analytics.call_facts AS SELECT * FROM analytics.call_facts_between('-infinity', 'infinity');

COMMENT ON VIEW analytics.job_facts IS 'One row a job, with its source, segment, unit, repair, lead and payments: every job number in the metrics can be drilled down to here.';
COMMENT ON VIEW analytics.lead_facts IS 'One row a lead, by the channel rule in force, with its cost.';
COMMENT ON VIEW analytics.daily_spend IS 'Google''s cost by day.';
COMMENT ON VIEW analytics.orphan_payments IS 'Counted payments whose job is unknown.';
COMMENT ON VIEW analytics.call_facts IS 'One row a call, under its flow''s source.';
DO $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT a.attrelid::regclass AS view, a.attname AS name, m.meaning
        FROM pg_attribute a
        JOIN (VALUES
            ('job_id', 'The job.'), ('job_number', 'The number people use.'),
            ('job_date', 'Local date of the job''s creation.'), ('month', 'First day of its month.'),
            ('source', 'Channel name, after channel_aliases.'), ('segment', 'COD, INS or OTHER.'),
            ('type', 'The job''s type as given.'), ('status', 'The job''s status as given.'),
            ('is_unit', 'Type is COD Service or INS Service.'),
            ('is_repair', 'Type is COD Repair or INS Repair, or COD Service with more than 100.00 paid.'),
            ('is_lead', 'Whether the job is a lead: its channel''s rule in force is jobs, or units and it is a unit.'),
            ('lead_cost', 'Dollars that the lead costs, where the channel pays by lead; else 0.'),
            ('paid_total', 'Dollars: sum of the job''s counted payments, 0 if none.'),
            ('technician', 'Technician as given.'), ('zip', 'Postal code as given.'),
            ('file_id', 'raw.source_files entry that the row came from.'), ('record_no', 'Record in that file.'),
            ('lead_id', 'Id in the table that origin names.'),
            ('origin', 'Where the lead stands: elocals_leads, proref_leads or jobs.'),
            ('lead_date', 'Local date of the lead.'), ('cost', 'Dollars.'), ('date', 'The day.'),
            ('payment_id', 'The payment.'), ('job_ref', 'The job as the payment names it.'),
            ('paid_date', 'Local date of the payment.'), ('amount', 'Dollars; refunds are negative.'),
            ('call_id', 'The call.'), ('call_date', 'Local date of the call.'),
            ('answered', 'Whether somebody answered.'), ('duration_seconds', 'Duration in seconds.')
        ) AS m (column_name, meaning) ON m.column_name = a.attname
        WHERE a.attrelid IN (
            'analytics.job_facts'::regclass, 'analytics.lead_facts'::regclass, 'analytics.daily_spend'::regclass,
            'analytics.orphan_payments'::regclass, 'analytics.call_facts'::regclass
        ) AND a.attnum > 0
    LOOP
        EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', c.view, c.name, c.meaning);
    END LOOP;
END $$;
