-- The facts: every business rule is defined here, once; metrics only add facts up. First the rules themselves (except
-- which payments count: the generated column raw.payments.counts), then the facts made with them: each is a function
-- of a date range [p_from, p_to) and a view of the same name over all time. PostgreSQL inlines all of these functions:
-- docs/decisions/facts-as-range-functions.md. A rule's comment is its only wording: dashboards and the UI read it from
-- here, everything else names the function.

CREATE FUNCTION analytics.is_unit(type_folded text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN type_folded IN ('cod service', 'ins service');
COMMENT ON FUNCTION analytics.is_unit IS 'Unit: a job of type COD Service or INS Service.';

CREATE FUNCTION analytics.is_repair(type_folded text, paid numeric) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN type_folded IN ('cod repair', 'ins repair') OR (type_folded = 'cod service' AND coalesce(paid, 0) > 100);
COMMENT ON FUNCTION analytics.is_repair IS
    'Repair: a job of type COD Repair or INS Repair, or of type COD Service with more than 100.00 dollars paid.';

CREATE FUNCTION analytics.segment_of(type_folded text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN type_folded ~ '\mcod\M' THEN 'COD' WHEN type_folded ~ '\mins\M' THEN 'INS' ELSE 'OTHER' END;
COMMENT ON FUNCTION analytics.segment_of IS
    'COD if the type contains the word COD, else INS if it contains the word INS, else OTHER. A word, not a substring: '
    'Installation is OTHER.';

CREATE FUNCTION analytics.is_elocals_lead(cost numeric) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN cost > 0;
COMMENT ON FUNCTION analytics.is_elocals_lead IS 'Rule elocals_paid: a row of raw.elocals_leads with a cost above 0.';

CREATE FUNCTION analytics.is_proref_lead(status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN raw.fold(status) <> 'passed';
COMMENT ON FUNCTION analytics.is_proref_lead IS
    'Rule proref_not_passed: a row of raw.proref_leads that is not Passed; a blank status counts.';

CREATE FUNCTION analytics.source_name(meant text, folded text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(meant, nullif(folded, ''), 'Unattributed');
COMMENT ON FUNCTION analytics.source_name IS
    'Name of a source: what analytics.spellings has for the folded text, else that text; Unattributed if blank.';

CREATE FUNCTION analytics.revenue40(gross numeric) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN gross * 0.40;
COMMENT ON FUNCTION analytics.revenue40 IS
    'Revenue40: 40% of gross revenue, what is left after technician and fixed costs.';

CREATE FUNCTION analytics.ratio(n numeric, d numeric) RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN n / nullif(d, 0);
COMMENT ON FUNCTION analytics.ratio IS 'n per d, for conversions and costs per lead; NULL if d is 0.';

CREATE FUNCTION analytics.month_of(day date) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN date_trunc('month', day::timestamp)::date;
COMMENT ON FUNCTION analytics.month_of IS 'First day of the month of a day.';

CREATE FUNCTION analytics.next_month(month date) RETURNS date LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (month + interval '1 month')::date;
COMMENT ON FUNCTION analytics.next_month IS 'The same day of the following month.';

-- What was paid is added up in one of two ways, and constant conditions drop the other one before planning: a short
-- range reads the payments of its own jobs only; a range of more than 400 days reads all payments in index order,
-- which needs neither a second look at jobs nor a hash table of them.
CREATE FUNCTION analytics.job_facts_between(p_from date, p_to date)
RETURNS TABLE (
    job_id text, job_number text, job_date date, month date, source text, segment text, type text, status text,
    is_unit boolean, is_repair boolean, is_lead boolean, lead_cost numeric, paid_total numeric, technician text,
    zip text, file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        j.job_id, j.job_number, j.job_date, analytics.month_of(j.job_date),
        n.source, analytics.segment_of(j.type_folded), j.type, j.status, n.is_unit,
        analytics.is_repair(j.type_folded, p.paid_total), c.source IS NOT NULL, coalesce(c.cost_per_lead, 0),
        coalesce(p.paid_total, 0), j.technician, j.zip, j.file_id, j.record_no
    FROM raw.jobs j
    LEFT JOIN analytics.spellings s ON s.folded = j.source_folded
    CROSS JOIN LATERAL (
        SELECT
            analytics.source_name(s.source, j.source_folded) AS source, analytics.is_unit(j.type_folded) AS is_unit
    ) n
    -- decided here and not in lead_facts, so that metrics join jobs and payments once
    LEFT JOIN analytics.channel_rules c
        ON c.source = n.source AND analytics.in_force(j.job_date, c.valid_from, c.valid_to)
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
COMMENT ON FUNCTION analytics.job_facts_between IS
    'One row per job dated in [p_from, p_to): source, segment, whether it is a unit, a repair and (by its channel''s '
    'rule) a lead, and what was paid for it.';

CREATE FUNCTION analytics.lead_facts_between(p_from date, p_to date)
RETURNS TABLE (
    lead_id text, origin text, lead_date date, month date, source text, segment text, cost numeric,
    file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        e.lead_id, 'elocals_leads', e.lead_date, analytics.month_of(e.lead_date), c.source, c.lead_segment,
        CASE c.cost_rule WHEN 'sum_cost' THEN e.cost WHEN 'per_lead' THEN c.cost_per_lead ELSE 0 END,
        e.file_id, e.record_no
    FROM raw.elocals_leads e
    JOIN analytics.channel_rules c
        ON c.lead_rule = 'elocals_paid' AND analytics.in_force(e.lead_date, c.valid_from, c.valid_to)
    WHERE analytics.is_elocals_lead(e.cost) AND e.lead_date >= p_from AND e.lead_date < p_to
    UNION ALL
    SELECT
        r.lead_id, 'proref_leads', r.lead_date, analytics.month_of(r.lead_date), c.source, c.lead_segment,
        coalesce(c.cost_per_lead, 0), r.file_id, r.record_no
    FROM raw.proref_leads r
    JOIN analytics.channel_rules c
        ON c.lead_rule = 'proref_not_passed' AND analytics.in_force(r.lead_date, c.valid_from, c.valid_to)
    WHERE analytics.is_proref_lead(r.current_status) AND r.lead_date >= p_from AND r.lead_date < p_to
    UNION ALL
    SELECT j.job_id, 'jobs', j.job_date, j.month, j.source, j.segment, j.lead_cost, j.file_id, j.record_no
    FROM analytics.job_facts_between(p_from, p_to) j
    WHERE j.is_lead
$$;
COMMENT ON FUNCTION analytics.lead_facts_between IS
    'One row per lead dated in [p_from, p_to), by the channel rule in force, with its cost (Google''s spend is in '
    'daily_spend).';

CREATE FUNCTION analytics.daily_spend_between(p_from date, p_to date)
RETURNS TABLE (date date, month date, source text, segment text, cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        m.month + k.day - 1, m.month, c.source, c.lead_segment,
        round(m.total * k.day / m.days, 2) - round(m.total * (k.day - 1) / m.days, 2)
    FROM (
        SELECT s.month, sum(s.amount) AS total, max(s.covered_to) - s.month + 1 AS days
        FROM raw.google_spend s
        WHERE s.month > p_from - 31 AND s.month < p_to
        GROUP BY s.month
    ) m
    JOIN analytics.channel_rules c
        ON c.cost_rule = 'google_spend' AND analytics.in_force(m.month, c.valid_from, c.valid_to)
    CROSS JOIN LATERAL generate_series(1, m.days) AS k (day)
    WHERE m.month + k.day - 1 >= p_from AND m.month + k.day - 1 < p_to
$$;
COMMENT ON FUNCTION analytics.daily_spend_between IS
    'Google''s cost by day in [p_from, p_to): the month''s total spread over the days that it covers, so that the days '
    'add up to it exactly.';

CREATE FUNCTION analytics.orphan_payments_between(p_from date, p_to date)
RETURNS TABLE (
    payment_id text, job_ref text, paid_date date, month date, source text, segment text, amount numeric,
    file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        p.payment_id, p.job_ref, p.paid_date, analytics.month_of(p.paid_date), 'Unattributed', 'OTHER', p.amount,
        p.file_id, p.record_no
    FROM raw.payments p
    WHERE p.job_id IS NULL AND p.counts AND p.paid_date >= p_from AND p.paid_date < p_to
$$;
COMMENT ON FUNCTION analytics.orphan_payments_between IS
    'Counted payments of [p_from, p_to) whose job is unknown: revenue under Unattributed/OTHER on the day paid, until '
    'the job arrives.';

CREATE FUNCTION analytics.call_facts_between(p_from date, p_to date)
RETURNS TABLE (
    call_id text, call_date date, month date, source text, segment text, answered boolean, duration_seconds int,
    file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        k.call_id, k.call_date, analytics.month_of(k.call_date), analytics.source_name(s.source, k.flow_folded),
        'OTHER', k.answered, k.duration_seconds, k.file_id, k.record_no
    FROM raw.calls k
    LEFT JOIN analytics.spellings s ON s.folded = k.flow_folded
    WHERE k.call_date >= p_from AND k.call_date < p_to
$$;
COMMENT ON FUNCTION analytics.call_facts_between IS
    'One row per call of [p_from, p_to), under its flow''s source; calls have no segment of their own: OTHER.';

CREATE VIEW analytics.job_facts AS SELECT * FROM analytics.job_facts_between('-infinity', 'infinity');
CREATE VIEW analytics.lead_facts AS SELECT * FROM analytics.lead_facts_between('-infinity', 'infinity');
CREATE VIEW analytics.daily_spend AS SELECT * FROM analytics.daily_spend_between('-infinity', 'infinity');
CREATE VIEW analytics.orphan_payments AS SELECT * FROM analytics.orphan_payments_between('-infinity', 'infinity');
CREATE VIEW analytics.call_facts AS SELECT * FROM analytics.call_facts_between('-infinity', 'infinity');

COMMENT ON VIEW analytics.job_facts IS
    'One row per job, with its source, segment, unit, repair, lead and payments: every job number in the metrics can '
    'be drilled down to here.';
COMMENT ON VIEW analytics.lead_facts IS 'One row per lead, by the channel rule in force, with its cost.';
COMMENT ON VIEW analytics.daily_spend IS 'Google''s cost by day.';
COMMENT ON VIEW analytics.orphan_payments IS 'Counted payments whose job is unknown.';
COMMENT ON VIEW analytics.call_facts IS 'One row per call, under its flow''s source.';
SELECT analytics.describe(
    '{analytics.job_facts, analytics.lead_facts, analytics.daily_spend, analytics.orphan_payments,
    analytics.call_facts}', $$
    job_id: The job.
    job_number: The number that people use.
    job_date: Local date of the job's creation.
    month: First day of its month.
    source: Name of the source, by analytics.spellings.
    segment: COD, INS or OTHER.
    type: The job's type as given.
    status: The job's status as given.
    is_unit: Whether the job is a unit, by analytics.is_unit.
    is_repair: Whether the job is a repair, by analytics.is_repair.
    is_lead: Whether the job is a lead: its channel's rule in force is jobs, or units and it is a unit.
    lead_cost: Dollars that the lead costs, if the channel pays per lead; else 0.
    paid_total: Dollars: sum of the job's counted payments, 0 if none.
    technician: Technician as given.
    zip: Postal code as given.
    file_id: raw.source_files entry that the row came from.
    record_no: Record in that file.
    lead_id: Id in the table that origin names.
    origin: The raw table that has the lead: elocals_leads, proref_leads or jobs.
    lead_date: Local date of the lead.
    cost: Dollars.
    date: The day.
    payment_id: The payment.
    job_ref: The job as named by the payment.
    paid_date: Local date of the payment.
    amount: Dollars; refunds are negative.
    call_id: The call.
    call_date: Local date of the call.
    answered: Whether the call was answered.
    duration_seconds: Duration in seconds.
$$);
