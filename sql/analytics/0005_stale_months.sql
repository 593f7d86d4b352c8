-- Incremental equals full: whatever changes a raw row or a channel rule notes the months that it affects, in the
-- same transaction. Statement-level triggers, so that a load of a million rows costs a few entries; they compare
-- the columns that matter, so that an unchanged row dirties nothing.

CREATE TABLE analytics.stale_months (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month date NOT NULL,
    cause text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX stale_months_month ON analytics.stale_months (month);
COMMENT ON TABLE analytics.stale_months IS 'The queue of months whose metrics no longer say what the raw tables say. Append-only: a refresh deletes the ids that it read before it computed, so a change that commits meanwhile stays queued.';
COMMENT ON COLUMN analytics.stale_months.id IS 'Number of the entry.';
COMMENT ON COLUMN analytics.stale_months.month IS 'First day of the month.';
COMMENT ON COLUMN analytics.stale_months.cause IS 'The table that changed, and how.';
COMMENT ON COLUMN analytics.stale_months.noted_at IS 'When the change''s transaction began.';

CREATE FUNCTION analytics.every_month() RETURNS SETOF date LANGUAGE sql STABLE AS $$
    SELECT m.month
    FROM (
        SELECT generate_series(analytics.month_of(min(day)), analytics.month_of(max(day)), interval '1 month')::date
        FROM (
            SELECT min(job_date) AS day FROM raw.jobs UNION ALL SELECT max(job_date) FROM raw.jobs
            UNION ALL SELECT min(paid_date) FROM raw.payments UNION ALL SELECT max(paid_date) FROM raw.payments
            UNION ALL SELECT min(call_date) FROM raw.calls UNION ALL SELECT max(call_date) FROM raw.calls
            UNION ALL SELECT min(lead_date) FROM raw.elocals_leads UNION ALL SELECT max(lead_date) FROM raw.elocals_leads
            UNION ALL SELECT min(lead_date) FROM raw.proref_leads UNION ALL SELECT max(lead_date) FROM raw.proref_leads
            UNION ALL SELECT min(month) FROM raw.google_spend UNION ALL SELECT max(month) FROM raw.google_spend
            UNION ALL SELECT min(month) FROM analytics.monthly_metrics
            UNION ALL SELECT max(month) FROM analytics.monthly_metrics
        ) AS days
        HAVING min(day) IS NOT NULL
    ) AS m (month)
    CROSS JOIN LATERAL (SELECT (m.month + interval '1 month')::date AS next) AS n
    WHERE EXISTS (SELECT FROM raw.jobs WHERE job_date >= m.month AND job_date < n.next)
        OR EXISTS (SELECT FROM raw.payments WHERE paid_date >= m.month AND paid_date < n.next)
        OR EXISTS (SELECT FROM raw.calls WHERE call_date >= m.month AND call_date < n.next)
        OR EXISTS (SELECT FROM raw.elocals_leads WHERE lead_date >= m.month AND lead_date < n.next)
        OR EXISTS (SELECT FROM raw.proref_leads WHERE lead_date >= m.month AND lead_date < n.next)
        OR EXISTS (SELECT FROM raw.google_spend g WHERE g.month = m.month)
        OR EXISTS (SELECT FROM analytics.monthly_metrics c WHERE c.month = m.month)
$$;
COMMENT ON FUNCTION analytics.every_month() IS 'Every month of which raw or metric tables have a row.';

-- Links and lists of months are made of what other transactions committed, after waiting for them. A transaction
-- with one snapshot for all of it would not see that, and its change would be lost to some month.
CREATE FUNCTION analytics.require_read_committed() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'this change needs READ COMMITTED, found: %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'invalid_transaction_state',
                HINT = 'Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
END $$;
COMMENT ON FUNCTION analytics.require_read_committed() IS 'Refuses a transaction whose snapshot is older than the locks that it takes.';

-- Arguments: the table's key, the day that a row belongs to, the columns that matter, a join that the day needs,
-- and which rows matter at all; all of them SQL over the alias r. An update affects the months of the rows that
-- differ before and after, which covers changed keys and rows that begin or cease to matter.
CREATE FUNCTION analytics.note_stale_months() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    rows_of text := 'SELECT ' || TG_ARGV[0] || ', ' || TG_ARGV[1] || ' AS day, ' || TG_ARGV[2]
        || ' FROM %I r ' || TG_ARGV[3] || ' WHERE ' || TG_ARGV[4];
    days text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM analytics.require_read_committed();
        INSERT INTO analytics.stale_months (month, cause)
        SELECT m, TG_TABLE_NAME || ' truncate' FROM analytics.every_month() m;
        RETURN NULL;
    END IF;
    days := CASE TG_OP
        WHEN 'INSERT' THEN format(rows_of, 'new_rows')
        WHEN 'DELETE' THEN format(rows_of, 'old_rows')
        ELSE format('(%1$s EXCEPT %2$s) UNION ALL (%2$s EXCEPT %1$s)',
            format(rows_of, 'old_rows'), format(rows_of, 'new_rows'))
    END;
    EXECUTE format(
        'INSERT INTO analytics.stale_months (month, cause)'
        ' SELECT DISTINCT analytics.month_of(day), %L FROM (%s) AS changed',
        TG_TABLE_NAME || ' ' || lower(TG_OP), days
    );
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.note_stale_months() IS 'Trigger: notes the months that a statement''s changed rows affect.';

CREATE FUNCTION analytics.note_every_month() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed boolean := true;
BEGIN
    IF TG_OP = 'INSERT' THEN
        SELECT EXISTS (SELECT FROM new_rows) INTO changed;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT EXISTS (SELECT FROM old_rows) INTO changed;
    ELSIF TG_OP = 'UPDATE' THEN
        SELECT EXISTS (SELECT * FROM old_rows EXCEPT SELECT * FROM new_rows) INTO changed;
    END IF;
    IF changed THEN
        PERFORM analytics.require_read_committed();
        INSERT INTO analytics.stale_months (month, cause)
        SELECT m, TG_TABLE_NAME || ' ' || lower(TG_OP) FROM analytics.every_month() m;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.note_every_month() IS 'Trigger: a changed channel rule or alias affects every month. A refresh waits for open changes of rules, so that no month appears meanwhile under the old ones.';

-- Payments are linked to jobs here and nowhere else but in the loader's insert, which looks jobs up in the same
-- view. Jobs and payments that arrive in two transactions at once would miss each other: the lock makes the
-- later one see the earlier one's rows.
CREATE VIEW raw.jobs_by_number AS
SELECT j.job_number, j.job_id FROM raw.jobs j
WHERE j.job_number IS NOT NULL AND NOT EXISTS (
    SELECT FROM raw.jobs other WHERE other.job_number = j.job_number AND other.job_id <> j.job_id
);
COMMENT ON VIEW raw.jobs_by_number IS 'Job numbers that name exactly one job; a number that two jobs share links nothing.';
COMMENT ON COLUMN raw.jobs_by_number.job_number IS 'The number.';
COMMENT ON COLUMN raw.jobs_by_number.job_id IS 'The only job with this number.';

CREATE FUNCTION raw.lock_links() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM analytics.require_read_committed();
    PERFORM pg_advisory_xact_lock(7205119002661002);
END $$;
COMMENT ON FUNCTION raw.lock_links() IS 'Serializes, until the transaction ends, whatever links payments to jobs.';

CREATE FUNCTION raw.relink_payments() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    candidates text;
    affected text;
BEGIN
    IF TG_TABLE_NAME = 'jobs' THEN
        candidates := CASE TG_OP
            WHEN 'INSERT' THEN 'SELECT job_id, job_number FROM new_rows'
            WHEN 'DELETE' THEN 'SELECT job_id, job_number FROM old_rows'
            ELSE '(SELECT job_id, job_number FROM old_rows EXCEPT SELECT job_id, job_number FROM new_rows)'
                ' UNION ALL (SELECT job_id, job_number FROM new_rows EXCEPT SELECT job_id, job_number FROM old_rows)'
        END;
        affected := 'SELECT p.payment_id FROM changed c JOIN raw.payments p'
            ' ON p.job_id_ref = c.job_id AND p.job_id IS DISTINCT FROM p.job_id_ref'
            ' UNION SELECT p.payment_id FROM changed c JOIN raw.payments p'
            ' ON p.job_number_ref = c.job_number AND p.job_id IS NULL'
            ' UNION SELECT p.payment_id FROM changed c JOIN raw.jobs j ON j.job_number = c.job_number'
            '  AND j.job_id <> c.job_id JOIN raw.payments p ON p.job_id = j.job_id'
            ' UNION SELECT p.payment_id FROM changed c JOIN raw.payments p ON p.job_id = c.job_id'
            '  AND p.job_id IS DISTINCT FROM p.job_id_ref';
    ELSE
        candidates := CASE TG_OP
            WHEN 'INSERT' THEN 'SELECT payment_id FROM new_rows'
            ELSE 'SELECT payment_id FROM (SELECT payment_id, job_id, job_id_ref, job_number_ref FROM new_rows'
                ' EXCEPT SELECT payment_id, job_id, job_id_ref, job_number_ref FROM old_rows) moved'
        END;
        affected := 'SELECT payment_id FROM changed';
    END IF;
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM old_rows) THEN
            RETURN NULL;
        END IF;
    ELSIF NOT EXISTS (SELECT FROM new_rows) THEN
        RETURN NULL;
    END IF;
    PERFORM raw.lock_links();
    EXECUTE 'WITH changed AS MATERIALIZED (' || candidates || ')'
        ' UPDATE raw.payments linked SET job_id = found.job_id'
        ' FROM (SELECT p.payment_id, coalesce(by_id.job_id, by_number.job_id) AS job_id'
        '       FROM (' || affected || ') a'
        '       JOIN raw.payments p ON p.payment_id = a.payment_id'
        '       LEFT JOIN raw.jobs by_id ON by_id.job_id = p.job_id_ref'
        '       LEFT JOIN raw.jobs_by_number by_number ON by_number.job_number = p.job_number_ref) found'
        ' WHERE linked.payment_id = found.payment_id AND linked.job_id IS DISTINCT FROM found.job_id';
    RETURN NULL;
END $$;
COMMENT ON FUNCTION raw.relink_payments() IS 'Trigger: links payments to the job that their reference names: by id first, else by a number that names exactly one job.';

CREATE TRIGGER a_relink_insert AFTER INSERT ON raw.jobs REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION raw.relink_payments();
CREATE TRIGGER a_relink_update AFTER UPDATE ON raw.jobs REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION raw.relink_payments();
CREATE TRIGGER a_relink_delete AFTER DELETE ON raw.jobs REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION raw.relink_payments();
CREATE TRIGGER a_relink_insert AFTER INSERT ON raw.payments REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION raw.relink_payments();
CREATE TRIGGER a_relink_update AFTER UPDATE ON raw.payments REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION raw.relink_payments();

-- A deleted payment affects the month that its job has now: a job that moves at the same time must wait.
CREATE FUNCTION raw.lock_links_of_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM old_rows) THEN
        PERFORM raw.lock_links();
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION raw.lock_links_of_deleted() IS 'Trigger: payments are deleted behind the lock of the links.';
CREATE TRIGGER a_relink_delete AFTER DELETE ON raw.payments REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION raw.lock_links_of_deleted();

-- Corrections by hand. The loader says what a reference may be (job_id_ref, job_number_ref); a person says job_ref,
-- or the job itself. pg_trigger_depth keeps out the links that triggers and foreign keys make.
CREATE FUNCTION raw.understand_reference() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    by_hand boolean := NEW.job_id IS NOT NULL;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        by_hand := NEW.job_id IS DISTINCT FROM OLD.job_id;
    END IF;
    IF by_hand THEN -- the job itself: it stays linked to it, or to none
        NEW.job_id_ref := NEW.job_id;
        NEW.job_number_ref := NULL;
        NEW.job_ref := coalesce(NEW.job_id, NEW.job_ref);
    ELSE
        NEW.job_id_ref := NEW.job_ref;
        NEW.job_number_ref := CASE
            WHEN NEW.job_ref ~ '^[0-9]+$' THEN coalesce(nullif(ltrim(NEW.job_ref, '0'), ''), '0')
        END;
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION raw.understand_reference() IS 'Trigger: a payment inserted or corrected by hand with job_ref is linked by it (a job_id, or else a number); with job_id, to that job.';
CREATE TRIGGER understand_inserted BEFORE INSERT ON raw.payments
    FOR EACH ROW WHEN (
        NEW.job_id_ref IS NULL AND NEW.job_number_ref IS NULL AND (NEW.job_ref IS NOT NULL OR NEW.job_id IS NOT NULL)
    ) EXECUTE FUNCTION raw.understand_reference();
CREATE TRIGGER understand_updated BEFORE UPDATE OF job_ref, job_id ON raw.payments
    FOR EACH ROW WHEN (
        pg_trigger_depth() = 0
        AND (NEW.job_ref, NEW.job_id) IS DISTINCT FROM (OLD.job_ref, OLD.job_id)
        AND (NEW.job_id_ref, NEW.job_number_ref, NEW.file_id, NEW.record_no)
            IS NOT DISTINCT FROM (OLD.job_id_ref, OLD.job_number_ref, OLD.file_id, OLD.record_no)
    ) EXECUTE FUNCTION raw.understand_reference();

-- Which rows affect which month, and through which columns.
DO $$
DECLARE
    t record;
    args text;
BEGIN
    FOR t IN SELECT * FROM (VALUES
        ('raw.jobs', 'r.job_id', 'r.job_date', 'r.type_folded, r.source_folded', '', 'true'),
        -- a payment: its job's month, or its paid month while its job is unknown
        ('raw.payments', 'r.payment_id', 'coalesce(j.job_date, r.paid_date)', 'r.job_id, r.amount',
            'LEFT JOIN raw.jobs j ON j.job_id = r.job_id', 'r.counts'),
        ('raw.calls', 'r.call_id', 'r.call_date', 'r.flow_folded', '', 'true'),
        ('raw.elocals_leads', 'r.lead_id', 'r.lead_date', 'r.cost', '', 'r.cost > 0'),
        ('raw.proref_leads', 'r.lead_id', 'r.lead_date', 'true', '', 'raw.fold(r.current_status) <> ''passed'''),
        ('raw.google_spend', 'r.campaign', 'r.month', 'r.amount, r.covered_to', '', 'true')
    ) AS declared (name, row_key, day, matters, day_join, filter)
    LOOP
        args := format('%L, %L, %L, %L, %L', t.row_key, t.day, t.matters, t.day_join, t.filter);
        EXECUTE format('CREATE TRIGGER b_stale_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_stale_months(%s)', t.name, args);
        EXECUTE format('CREATE TRIGGER b_stale_update AFTER UPDATE ON %s'
            ' REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_stale_months(%s)', t.name, args);
        EXECUTE format('CREATE TRIGGER b_stale_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS old_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_stale_months(%s)', t.name, args);
        EXECUTE format('CREATE TRIGGER b_stale_truncate AFTER TRUNCATE ON %s'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_stale_months(%s)', t.name, args);
    END LOOP;
    FOR t IN SELECT unnest(ARRAY['analytics.lead_channels', 'analytics.channel_aliases']) AS name LOOP
        EXECUTE format('CREATE TRIGGER b_stale_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS new_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_every_month()', t.name);
        EXECUTE format('CREATE TRIGGER b_stale_update AFTER UPDATE ON %s'
            ' REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_every_month()', t.name);
        EXECUTE format('CREATE TRIGGER b_stale_delete AFTER DELETE ON %s REFERENCING OLD TABLE AS old_rows'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_every_month()', t.name);
        EXECUTE format('CREATE TRIGGER b_stale_truncate AFTER TRUNCATE ON %s'
            ' FOR EACH STATEMENT EXECUTE FUNCTION analytics.note_every_month()', t.name);
    END LOOP;
END $$;
