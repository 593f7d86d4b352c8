-- The facts: every business rule is defined here, once; facts ask it for each row, metrics for groups of rows that are
-- alike. First the rules themselves (except which payments count: the generated column raw.payments.counts), then the
-- facts made with them: each is a function of a date range [p_from, p_to) and a view of the same name over all time.
-- PostgreSQL inlines all of these functions: docs/decisions/facts-as-range-functions.md. A rule's comment is its only
-- wording: dashboards and the UI read it from here, everything else names the function. Beside it are the words that
-- say of one row why it counts. They quote types and statuses only if a rule names them: any other text may be a
-- customer's.

CREATE FUNCTION analytics.is_unit(type_folded text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN type_folded IN ('cod service', 'ins service');
COMMENT ON FUNCTION analytics.is_unit IS 'Unit: a job of type COD Service or INS Service.';

CREATE FUNCTION analytics.repair_threshold() RETURNS numeric LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN 100;
COMMENT ON FUNCTION analytics.repair_threshold IS
    'Dollars: the limit in analytics.is_repair, which has the wording.';

CREATE FUNCTION analytics.repair_rule(type_folded text, paid numeric) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN type_folded IN ('cod repair', 'ins repair') THEN 'repair_type'
    WHEN type_folded = 'cod service' AND paid > analytics.repair_threshold() THEN 'paid_service'
END;
COMMENT ON FUNCTION analytics.repair_rule IS
    'The rule that makes a job a repair: repair_type, its type says so; paid_service, enough was paid for it; NULL if '
    'it is none. analytics.is_repair has the wording.';

CREATE FUNCTION analytics.is_repair(type_folded text, paid numeric) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN analytics.repair_rule(type_folded, paid) IS NOT NULL;
COMMENT ON FUNCTION analytics.is_repair IS
    'Repair: a job of type COD Repair or INS Repair, or of type COD Service with more than 100.00 dollars paid.';

CREATE FUNCTION analytics.job_words(type text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN type IS NULL THEN 'job without a type'
    WHEN analytics.is_unit(raw.fold(type)) OR analytics.is_repair(raw.fold(type), 0) THEN type
    ELSE 'job of another type'
END || ': every job counts, in any status';
COMMENT ON FUNCTION analytics.job_words IS
    'Why a job counts as a job; names its type if that alone makes it a unit or a repair.';

CREATE FUNCTION analytics.repair_words(repair_rule text, type text, paid numeric) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE repair_rule
    WHEN 'repair_type' THEN type || ', a repair by its type'
    WHEN 'paid_service' THEN type || ' with ' || paid || ' paid, more than ' || analytics.repair_threshold()
END;
COMMENT ON FUNCTION analytics.repair_words IS 'Why a job is a repair, from its repair_rule.';

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

CREATE FUNCTION analytics.is_workiz_lead(status text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN raw.fold(status) <> 'passed';
COMMENT ON FUNCTION analytics.is_workiz_lead IS
    'Rule workiz_leads: a row of raw.workiz_leads with the channel''s source that is not Passed; a blank status '
    'counts.';

CREATE FUNCTION analytics.lead_words(lead_rule text, source text, has_status boolean, price numeric) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE lead_rule
    WHEN 'jobs' THEN 'job of ' || source || ', whose jobs are leads'
    WHEN 'units' THEN 'unit of ' || source || ', whose units are leads'
    WHEN 'elocals_paid' THEN 'lead with a price of ' || price || ', above 0'
    WHEN 'proref_not_passed' THEN 'lead '
    WHEN 'workiz_leads' THEN 'lead of ' || source || ' in the field-service system '
END || CASE
    WHEN lead_rule NOT IN ('proref_not_passed', 'workiz_leads') THEN ''
    WHEN has_status THEN 'with another status than Passed'
    ELSE 'without a status'
END;
COMMENT ON FUNCTION analytics.lead_words IS 'Why a row is a lead, from its lead_rule.';

CREATE FUNCTION analytics.cost_words(cost_rule text, source text, cost numeric) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN CASE cost_rule
    WHEN 'sum_cost' THEN 'the lead''s own price of ' || cost
    WHEN 'per_lead' THEN cost || ' per lead of ' || source
END;
COMMENT ON FUNCTION analytics.cost_words IS 'Why a lead costs something, from its cost_rule.';

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

CREATE FUNCTION analytics.channel_of(p_day date, p_source text, p_type_folded text)
RETURNS TABLE (lead_rule text, cost_rule text, cost_per_lead numeric)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT c.lead_rule, c.cost_rule, c.cost_per_lead
    FROM analytics.channel_rules c
    WHERE c.source = p_source AND analytics.in_force(p_day, c.valid_from, c.valid_to)
        AND (c.lead_rule = 'jobs' OR (c.lead_rule = 'units' AND analytics.is_unit(p_type_folded)))
$$;
COMMENT ON FUNCTION analytics.channel_of IS
    'The channel rule by which a job of this day, source and type is a lead, and what it costs; no row if it is none.';

-- What was paid is added up in one of two ways: a short range looks up the payments of each of its jobs; a range of
-- more than 400 days reads all payments in index order. Where the dates are constants, CASE names one sum before
-- planning, and the planner removes the join of the other, which cannot change the number of rows. Where they are not,
-- the conditions keep the other one from reading anything.
CREATE FUNCTION analytics.jobs_with_payments_between(p_from date, p_to date)
RETURNS TABLE (
    job_id text, job_number text, job_date date, source_folded text, type_folded text, type text, status text,
    technician text, zip text, file_id bigint, record_no int, paid numeric
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        j.job_id, j.job_number, j.job_date, j.source_folded, j.type_folded, j.type, j.status, j.technician, j.zip,
        j.file_id, j.record_no, CASE WHEN p_to <= p_from + 400 THEN looked_up.paid ELSE added_up.paid END
    FROM raw.jobs j
    LEFT JOIN LATERAL (
        SELECT sum(p.amount) AS paid
        FROM raw.payments p
        WHERE p.job_id = j.job_id AND p.counts AND p_to <= p_from + 400
    ) looked_up ON true
    LEFT JOIN (
        SELECT p.job_id, sum(p.amount) AS paid
        FROM raw.payments p
        WHERE p.job_id IS NOT NULL AND p.counts AND p_to > p_from + 400
        GROUP BY p.job_id
    ) added_up ON added_up.job_id = j.job_id
    WHERE j.job_date >= p_from AND j.job_date < p_to
$$;
COMMENT ON FUNCTION analytics.jobs_with_payments_between IS
    'Jobs dated in [p_from, p_to), each with the sum of its counted payments, NULL if it has none: what facts and '
    'metrics of jobs begin with.';

CREATE FUNCTION analytics.job_facts_between(p_from date, p_to date)
RETURNS TABLE (
    job_id text, job_number text, job_date date, month date, source text, segment text, type text, status text,
    is_unit boolean, is_repair boolean, repair_rule text, is_lead boolean, lead_rule text, cost_rule text,
    lead_cost numeric, paid_total numeric, technician text, zip text, file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        j.job_id, j.job_number, j.job_date, analytics.month_of(j.job_date), n.source,
        analytics.segment_of(j.type_folded), j.type, j.status, analytics.is_unit(j.type_folded),
        analytics.is_repair(j.type_folded, j.paid), analytics.repair_rule(j.type_folded, j.paid),
        c.lead_rule IS NOT NULL, c.lead_rule, c.cost_rule, coalesce(c.cost_per_lead, 0), coalesce(j.paid, 0),
        j.technician, j.zip, j.file_id, j.record_no
    FROM analytics.jobs_with_payments_between(p_from, p_to) j
    LEFT JOIN analytics.spellings s ON s.folded = j.source_folded
    CROSS JOIN LATERAL (SELECT analytics.source_name(s.source, j.source_folded) AS source) n
    LEFT JOIN LATERAL analytics.channel_of(j.job_date, n.source, j.type_folded) c ON true
$$;
COMMENT ON FUNCTION analytics.job_facts_between IS
    'One row per job dated in [p_from, p_to): source, segment, whether it is a unit, a repair and (by its channel''s '
    'rule) a lead, by which rules, and what was paid for it.';

CREATE FUNCTION analytics.lead_facts_between(p_from date, p_to date)
RETURNS TABLE (
    lead_id text, origin text, lead_date date, month date, source text, segment text, status text, price numeric,
    lead_rule text, cost_rule text, cost numeric, file_id bigint, record_no int
) LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        e.lead_id, 'elocals_leads', e.lead_date, analytics.month_of(e.lead_date), c.source, c.lead_segment, e.status,
        e.cost, c.lead_rule, c.cost_rule,
        CASE c.cost_rule WHEN 'sum_cost' THEN e.cost WHEN 'per_lead' THEN c.cost_per_lead ELSE 0 END,
        e.file_id, e.record_no
    FROM raw.elocals_leads e
    JOIN analytics.channel_rules c
        ON c.lead_rule = 'elocals_paid' AND analytics.in_force(e.lead_date, c.valid_from, c.valid_to)
    WHERE analytics.is_elocals_lead(e.cost) AND e.lead_date >= p_from AND e.lead_date < p_to
    UNION ALL
    SELECT
        r.lead_id, 'proref_leads', r.lead_date, analytics.month_of(r.lead_date), c.source, c.lead_segment,
        r.current_status, NULL, c.lead_rule, c.cost_rule, coalesce(c.cost_per_lead, 0), r.file_id, r.record_no
    FROM raw.proref_leads r
    JOIN analytics.channel_rules c
        ON c.lead_rule = 'proref_not_passed' AND analytics.in_force(r.lead_date, c.valid_from, c.valid_to)
    WHERE analytics.is_proref_lead(r.current_status) AND r.lead_date >= p_from AND r.lead_date < p_to
    UNION ALL
    SELECT
        w.lead_id, 'workiz_leads', w.lead_date, analytics.month_of(w.lead_date), c.source, c.lead_segment, w.status,
        NULL, c.lead_rule, c.cost_rule, coalesce(c.cost_per_lead, 0), w.file_id, w.record_no
    FROM raw.workiz_leads w
    LEFT JOIN analytics.spellings s ON s.folded = w.source_folded
    JOIN analytics.channel_rules c
        ON c.lead_rule = 'workiz_leads' AND c.source = analytics.source_name(s.source, w.source_folded)
            AND analytics.in_force(w.lead_date, c.valid_from, c.valid_to)
    WHERE analytics.is_workiz_lead(w.status) AND w.lead_date >= p_from AND w.lead_date < p_to
    UNION ALL
    SELECT
        j.job_id, 'jobs', j.job_date, j.month, j.source, j.segment, j.status, NULL, j.lead_rule, j.cost_rule,
        j.lead_cost, j.file_id, j.record_no
    FROM analytics.job_facts_between(p_from, p_to) j
    WHERE j.is_lead
$$;
COMMENT ON FUNCTION analytics.lead_facts_between IS
    'One row per lead dated in [p_from, p_to), by the channel rule in force, with its cost (Google''s spend is in '
    'daily_spend).';

CREATE FUNCTION analytics.daily_spend_between(p_from date, p_to date)
RETURNS TABLE (
    date date, month date, source text, segment text, cost numeric, days int, month_total numeric, file_ids bigint[]
)
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT
        m.month + k.day - 1, m.month, c.source, c.lead_segment,
        round(m.total * k.day / m.days, 2) - round(m.total * (k.day - 1) / m.days, 2), m.days, m.total, m.file_ids
    FROM (
        SELECT
            s.month, sum(s.amount) AS total, max(s.covered_to) - s.month + 1 AS days,
            array_agg(DISTINCT s.file_id) AS file_ids
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
    status: Status of the job or lead as given.
    is_unit: Whether the job is a unit, by analytics.is_unit.
    is_repair: Whether the job is a repair, by analytics.is_repair.
    repair_rule: The rule that makes the job a repair, by analytics.repair_rule: repair_type or paid_service; NULL if it
        is none.
    is_lead: Whether the job is a lead, by analytics.channel_of.
    lead_rule: The lead_rule in analytics.lead_channels by which this is a lead: jobs or units for a job, elocals_paid,
        proref_not_passed or workiz_leads for a row of another table; NULL if it is none.
    cost_rule: The cost_rule of the same row of analytics.lead_channels; NULL if this is no lead.
    lead_cost: Dollars that the lead costs, if the channel pays per lead; else 0.
    paid_total: Dollars: sum of the job's counted payments, 0 if none.
    technician: Technician as given.
    zip: Postal code as given.
    file_id: raw.source_files entry that the row came from.
    record_no: Record in that file.
    lead_id: Id in the table that origin names.
    origin: The raw table that has the lead: elocals_leads, proref_leads, workiz_leads or jobs.
    lead_date: Local date of the lead.
    price: Dollars: the lead's own price as exported; NULL if its table has none.
    cost: Dollars.
    date: The day.
    days: Days of the month that its spend covers.
    month_total: Dollars: the month's spend, which is spread over these days.
    file_ids: raw.source_files entries that the month's spend came from.
    payment_id: The payment.
    job_ref: The job as named by the payment.
    paid_date: Local date of the payment.
    amount: Dollars; refunds are negative.
    call_id: The call.
    call_date: Local date of the call.
    answered: Whether the call was answered.
    duration_seconds: Duration in seconds.
$$);
