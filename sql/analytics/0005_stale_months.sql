-- Incremental equals full: whatever changes a raw row or a channel rule notes the affected months in the same
-- transaction. The triggers work per statement, so that a load of a million rows costs a few entries, and compare the
-- columns that matter, so that an unchanged row marks nothing: docs/decisions/incremental-equals-full.md.

-- Attribution only: whatever a session sets, nothing fails and no number depends on it.
CREATE FUNCTION analytics.loading_file() RETURNS bigint LANGUAGE sql STABLE
RETURN substring(current_setting('crm_analytics.file_id', true) FROM '^[0-9]{1,18}$')::bigint;
COMMENT ON FUNCTION analytics.loading_file IS
    'The file that this transaction loads, as the loader names it in the setting crm_analytics.file_id; NULL if none.';

CREATE TABLE analytics.stale_months (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month date NOT NULL,
    table_name text,
    operation text NOT NULL,
    file_id bigint DEFAULT analytics.loading_file(),
    changed_by text NOT NULL DEFAULT session_user,
    rows int,
    cause text NOT NULL GENERATED ALWAYS AS (coalesce(table_name || ' ', '') || operation) STORED,
    noted_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX stale_months_month ON analytics.stale_months (month);
COMMENT ON TABLE analytics.stale_months IS
    'The queue of months whose metrics no longer match the raw tables. Append-only: a refresh deletes the ids that it '
    'read before it computed, so a change that commits meanwhile stays queued.';
SELECT analytics.describe('{analytics.stale_months}', $$
    id: Number of the entry.
    month: First day of the month.
    table_name: The table that changed; NULL for what changes no table.
    operation: insert, update, delete or truncate; without a table, why every month may have changed, such as the
        migration's name.
    file_id: The raw.source_files entry whose load made the change; NULL if none did.
    changed_by: The login that made the change.
    rows: How many of the month's rows changed: those before or those after, whichever are more. NULL where they are not
        counted: an empty table's first file, and changes of every month.
    cause: table_name and operation.
    noted_at: When the change's transaction began.
$$);

-- What a refresh changes in a month that had ended when it was refreshed before. The refresh writes it in its own
-- transaction (crm_analytics/analytics/warehouse/revisions.py).
CREATE TABLE analytics.revisions (
    revision_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month date NOT NULL,
    refresh_id bigint NOT NULL UNIQUE REFERENCES analytics.refresh_log,
    revised_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX revisions_month ON analytics.revisions (month, revised_at);
CREATE INDEX revisions_revised_at ON analytics.revisions (revised_at);
COMMENT ON TABLE analytics.revisions IS
    'Changes of closed months: one row for each refresh that changed the numbers of a month which had ended when it '
    'was refreshed before. The first numbers of a month are none, whenever they come.';
SELECT analytics.describe('{analytics.revisions}', $$
    revision_id: Number of the revision.
    month: First day of the month.
    refresh_id: The refresh of this month that changed it, in analytics.refresh_log.
    revised_at: When the refresh's transaction began.
$$);

CREATE TABLE analytics.revision_changes (
    revision_id bigint NOT NULL REFERENCES analytics.revisions,
    source varchar NOT NULL,
    segment varchar NOT NULL,
    measure text NOT NULL CONSTRAINT known_measure CHECK (
        measure IN ('jobs', 'units', 'repairs', 'leads', 'calls', 'cost', 'revenue_gross')
    ),
    old numeric NOT NULL,
    new numeric NOT NULL,
    PRIMARY KEY (revision_id, source, segment, measure),
    CHECK (old <> new)
);
COMMENT ON TABLE analytics.revision_changes IS
    'What a revision changed in monthly_metrics: one row for each stored measure that differs.';
SELECT analytics.describe('{analytics.revision_changes}', $$
    revision_id: The revision.
    source: The row's source.
    segment: The row's segment.
    measure: The measure: a column of monthly_metrics.
    old: Its value before; 0 if there was no row.
    new: Its value after; 0 if the row is gone.
$$);

CREATE TABLE analytics.revision_causes (
    revision_id bigint NOT NULL REFERENCES analytics.revisions,
    table_name text,
    operation text NOT NULL,
    file_id bigint,
    changed_by text,
    rows bigint,
    noted_at timestamptz NOT NULL,
    UNIQUE NULLS NOT DISTINCT (revision_id, table_name, operation, file_id, changed_by)
);
COMMENT ON TABLE analytics.revision_causes IS
    'Why a revision was made: the entries of stale_months that its refresh answered, alike ones added up. None if '
    'nothing was noted: a trigger was off, or daily metrics were changed by hand.';
SELECT analytics.describe('{analytics.revision_causes}', $$
    revision_id: The revision.
    table_name: The table that changed; NULL for what changes no table.
    operation: insert, update, delete or truncate; without a table, why every month may have changed.
    file_id: The raw.source_files entry whose load made the change; NULL if none did.
    changed_by: The login that made the change; NULL for a load.
    rows: How many of the month's rows changed, as in stale_months; NULL if they are not counted.
    noted_at: When the first of the changes' transactions began.
$$);

CREATE FUNCTION analytics.every_month() RETURNS SETOF date LANGUAGE sql STABLE AS $$
    SELECT m.month
    FROM (
        SELECT generate_series(
            analytics.month_of(min(d.first)), analytics.month_of(max(d.last)), interval '1 month'
        )::date
        FROM (
            SELECT min(job_date) AS first, max(job_date) AS last FROM raw.jobs
            UNION ALL SELECT min(paid_date), max(paid_date) FROM raw.payments
            UNION ALL SELECT min(call_date), max(call_date) FROM raw.calls
            UNION ALL SELECT min(lead_date), max(lead_date) FROM raw.elocals_leads
            UNION ALL SELECT min(lead_date), max(lead_date) FROM raw.proref_leads
            UNION ALL SELECT min(lead_date), max(lead_date) FROM raw.workiz_leads
            UNION ALL SELECT min(month), max(month) FROM raw.google_spend
            UNION ALL SELECT min(month), max(month) FROM analytics.monthly_metrics
        ) AS d
        HAVING min(d.first) IS NOT NULL
    ) AS m (month)
    CROSS JOIN LATERAL (SELECT analytics.next_month(m.month) AS next) AS n
    WHERE EXISTS (SELECT FROM raw.jobs WHERE job_date >= m.month AND job_date < n.next)
        OR EXISTS (SELECT FROM raw.payments WHERE paid_date >= m.month AND paid_date < n.next)
        OR EXISTS (SELECT FROM raw.calls WHERE call_date >= m.month AND call_date < n.next)
        OR EXISTS (SELECT FROM raw.elocals_leads WHERE lead_date >= m.month AND lead_date < n.next)
        OR EXISTS (SELECT FROM raw.proref_leads WHERE lead_date >= m.month AND lead_date < n.next)
        OR EXISTS (SELECT FROM raw.workiz_leads WHERE lead_date >= m.month AND lead_date < n.next)
        OR EXISTS (SELECT FROM raw.google_spend g WHERE g.month = m.month)
        OR EXISTS (SELECT FROM analytics.monthly_metrics c WHERE c.month = m.month)
$$;
COMMENT ON FUNCTION analytics.every_month IS 'Every month for which raw or metric tables have a row.';

-- Links and lists of months depend on what other transactions committed, after waiting for them. A transaction with
-- one snapshot for everything would not see that, and some month would lose its change.
CREATE FUNCTION analytics.require_read_committed() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'this change needs READ COMMITTED, found: %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'invalid_transaction_state',
                HINT = 'Begin the transaction with BEGIN ISOLATION LEVEL READ COMMITTED.';
    END IF;
END $$;
COMMENT ON FUNCTION analytics.require_read_committed IS
    'Refuses a transaction whose snapshot would be older than the locks that it takes.';

CREATE FUNCTION analytics.queue_every_month(operation text, table_name text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM analytics.require_read_committed();
    INSERT INTO analytics.stale_months (month, table_name, operation)
    SELECT m, queue_every_month.table_name, queue_every_month.operation FROM analytics.every_month() m;
END $$;
COMMENT ON FUNCTION analytics.queue_every_month IS
    'Makes every month stale, for a change that affects all of history. Each analytics migration calls it after its '
    'file, because a file may change a rule.';

-- Which rows affect which month, and through which columns: the table's key, the day that a row belongs to, the columns
-- that matter, a join that the day needs, and which rows matter at all; all of them SQL over the alias r.
CREATE FUNCTION analytics.rows_that_matter(relation regclass, rows_from text) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT string_agg(
        format('SELECT %s, %s AS day, %s FROM %s r %s WHERE %s', row_key, day, matters, rows_from, day_join, filter),
        ' UNION ALL '
    )
    FROM (VALUES
        ('raw.jobs'::regclass, 'r.job_id', 'r.job_date', 'r.type_folded, r.source_folded', '', 'true'),
        -- a payment: its job's month, or the month in which it was paid while its job is unknown
        (
            'raw.payments', 'r.payment_id', 'j.job_date', 'r.job_id, r.amount',
            'JOIN raw.jobs j ON j.job_id = r.job_id', 'r.counts'
        ),
        ('raw.payments', 'r.payment_id', 'r.paid_date', 'r.job_id, r.amount', '', 'r.job_id IS NULL AND r.counts'),
        ('raw.calls', 'r.call_id', 'r.call_date', 'r.flow_folded', '', 'true'),
        ('raw.elocals_leads', 'r.lead_id', 'r.lead_date', 'r.cost', '', 'analytics.is_elocals_lead(r.cost)'),
        ('raw.proref_leads', 'r.lead_id', 'r.lead_date', 'true', '', 'analytics.is_proref_lead(r.current_status)'),
        -- whether a channel counts them or not: its rule may come at the same time
        ('raw.workiz_leads', 'r.lead_id', 'r.lead_date', 'r.source_folded', '', 'analytics.is_workiz_lead(r.status)'),
        ('raw.google_spend', 'r.campaign_id, r.campaign', 'r.month', 'r.amount, r.covered_to', '', 'true')
    ) AS source (relation, row_key, day, matters, day_join, filter)
    WHERE source.relation = rows_that_matter.relation
$$;
COMMENT ON FUNCTION analytics.rows_that_matter IS
    'SQL: of these rows of a raw table (the table itself, or the transition table of a statement), those that affect '
    'the metrics: key, day, and the columns that matter.';

CREATE FUNCTION analytics.queue_months_of(before text, after text, table_name text, operation text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN format(
    'INSERT INTO analytics.stale_months (month, table_name, operation, rows)
    SELECT analytics.month_of(day), %L, %L, greatest(sum(before), sum(after))
    FROM (
        SELECT day, count(*) FILTER (WHERE is_before) AS before, count(*) FILTER (WHERE NOT is_before) AS after
        FROM (%s) AS changed
        GROUP BY day
    ) AS days
    GROUP BY 1',
    table_name, operation, concat_ws(
        ' UNION ALL ',
        'SELECT day, true AS is_before FROM (' || before || ') AS before',
        'SELECT day, false AS is_before FROM (' || after || ') AS after'
    )
);
COMMENT ON FUNCTION analytics.queue_months_of IS
    'SQL that queues the months of these rows: those before a change, NULL for none, and those after it. Who has the '
    'rows executes it: only a trigger sees its transition tables.';

-- An update affects the months of the rows that differ before and after, which covers changed keys and rows that start
-- or cease to matter.
CREATE FUNCTION analytics.note_stale_months() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    old_rows text;
    new_rows text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        PERFORM analytics.queue_every_month('truncate', TG_TABLE_NAME);
        RETURN NULL;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        old_rows := analytics.rows_that_matter(TG_RELID, 'old_rows');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        new_rows := analytics.rows_that_matter(TG_RELID, 'new_rows');
    END IF;
    EXECUTE analytics.queue_months_of(
        CASE WHEN TG_OP = 'UPDATE' THEN format('(%s) EXCEPT (%s)', old_rows, new_rows) ELSE old_rows END,
        CASE WHEN TG_OP = 'UPDATE' THEN format('(%s) EXCEPT (%s)', new_rows, old_rows) ELSE new_rows END,
        TG_TABLE_NAME, lower(TG_OP)
    );
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.note_stale_months IS 'Trigger: notes the months that a statement''s changed rows affect.';

CREATE FUNCTION analytics.note_every_month() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    changed boolean := true;
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- a name that comes with the first rows of its source changes nothing that exists
        SELECT EXISTS (SELECT FROM new_rows) AND NOT (TG_TABLE_NAME = 'source_names' AND pg_trigger_depth() > 1)
        INTO changed;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT EXISTS (SELECT FROM old_rows) INTO changed;
    ELSIF TG_OP = 'UPDATE' THEN
        SELECT EXISTS (SELECT * FROM old_rows EXCEPT SELECT * FROM new_rows) INTO changed;
    END IF;
    IF changed THEN
        IF TG_TABLE_NAME = 'source_names' THEN
            -- a refresh waits for locks on rules; on names it would wait for every load that brings one
            LOCK TABLE analytics.lead_channels IN ROW EXCLUSIVE MODE;
        END IF;
        PERFORM analytics.queue_every_month(lower(TG_OP), TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.note_every_month IS
    'Trigger: a changed channel rule, alias or name affects every month. A refresh waits for uncommitted changes of '
    'them, so that no month appears meanwhile under the old ones.';

CREATE FUNCTION analytics.after_statement(relation regclass, prefix text, call text, events text[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    event text;
BEGIN
    FOREACH event IN ARRAY events LOOP
        EXECUTE format(
            'CREATE TRIGGER %I AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %s',
            prefix || '_' || lower(event), event, relation,
            CASE event
                WHEN 'INSERT' THEN 'REFERENCING NEW TABLE AS new_rows'
                WHEN 'UPDATE' THEN 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
                WHEN 'DELETE' THEN 'REFERENCING OLD TABLE AS old_rows'
            END,
            call
        );
    END LOOP;
END $$;
COMMENT ON FUNCTION analytics.after_statement IS
    'Creates a trigger prefix_event for each event, with the transition tables old_rows and new_rows.';

-- Payments are linked to jobs only here and in the loader's insert, which looks jobs up in the same view. Jobs and
-- payments that arrive in two concurrent transactions would miss each other: the lock makes the later one see the
-- earlier one's rows. See docs/decisions/payment-job-links.md.
-- With job_id <> job_id, the planner would expect not one number in the view, and join it row by row.
CREATE VIEW raw.jobs_by_number AS
SELECT j.job_number, j.job_id
FROM raw.jobs j
WHERE j.job_number IS NOT NULL AND NOT EXISTS (
    SELECT
    FROM raw.jobs other
    WHERE other.job_number = j.job_number AND (other.job_id < j.job_id OR other.job_id > j.job_id)
);
COMMENT ON VIEW raw.jobs_by_number IS
    'Job numbers that name exactly one job; a number that two jobs share links nothing.';
SELECT analytics.describe('{raw.jobs_by_number}', $$
    job_number: The number.
    job_id: The only job with this number.
$$);

CREATE FUNCTION raw.lock_links() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM analytics.require_read_committed();
    PERFORM pg_advisory_xact_lock(hashtextextended('analytics:payment_links', 0));
END $$;
COMMENT ON FUNCTION raw.lock_links IS 'Serializes, until the transaction ends, everything that links payments to jobs.';

-- ANALYZE overwrites what pg_class says of a table in place: a transaction that is rolled back does not take that back.
CREATE FUNCTION raw.is_trial() RETURNS boolean LANGUAGE sql STABLE
RETURN coalesce(current_setting('crm_analytics.trial', true), '') = 'on';
COMMENT ON FUNCTION raw.is_trial IS
    'Whether this transaction only tries something and will be rolled back: it must leave statistics as they are.';

-- A table whose rows were deleted, and which was analyzed then, looks empty to the planner however many rows come
-- back. Joining it row by row with the rows of a statement takes hours where it should take a second.
CREATE FUNCTION raw.correct_statistics(relation regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    -- before the first ANALYZE (reltuples -1), and without pages, the planner goes by the table's size
    IF EXISTS (SELECT FROM pg_class WHERE oid = relation AND relpages > 0 AND reltuples BETWEEN 0 AND 10) THEN
        IF raw.is_trial() THEN
            PERFORM set_config('enable_nestloop', 'off', true);
        ELSE
            EXECUTE format('ANALYZE %s', relation);
        END IF;
    END IF;
END $$;
COMMENT ON FUNCTION raw.correct_statistics IS
    'Analyzes a table whose statistics say that it is empty, or nearly so; a trial does without joins row by row '
    'instead.';

-- Planning the links takes longer than all the rest of a small file, and few new jobs have payments already.
-- This plan is kept, so it must not depend on statistics: it probes indexes, which suits few jobs in any tables.
CREATE FUNCTION raw.may_link(ids text[], numbers text[]) RETURNS boolean LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off AS $$
BEGIN
    RETURN EXISTS (
        SELECT
        FROM raw.payments p
        WHERE p.job_id_ref = ANY (ids) AND p.job_id_ref IS NOT NULL AND p.job_id IS DISTINCT FROM p.job_id_ref
    ) OR EXISTS (
        SELECT
        FROM raw.payments p
        WHERE p.job_number_ref = ANY (numbers) AND p.job_id IS NULL
    ) OR EXISTS (
        SELECT
        FROM raw.payments p
        WHERE p.job_id = ANY (ids) AND p.job_id IS DISTINCT FROM p.job_id_ref
    ) OR EXISTS (
        SELECT
        FROM raw.jobs j
        JOIN raw.payments p ON p.job_id = j.job_id
        WHERE j.job_number = ANY (numbers) AND p.job_id IS DISTINCT FROM p.job_id_ref
    );
END $$;
COMMENT ON FUNCTION raw.may_link IS
    'Whether a change of these few jobs may change a link: whether a payment waits for one of the ids or numbers, or '
    'is linked by number to such a job.';

CREATE FUNCTION raw.relink_payments() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    few CONSTANT int := 1000;
    -- the keys that the statement changed, and the payments that this may link or unlink
    changed text;
    affected text;
    -- those of the first jobs
    ids text[];
    numbers text[];
BEGIN
    IF TG_TABLE_NAME = 'jobs' THEN
        changed := CASE TG_OP
            WHEN 'INSERT' THEN 'SELECT job_id, job_number FROM new_rows'
            WHEN 'DELETE' THEN 'SELECT job_id, job_number FROM old_rows'
            ELSE '
                (SELECT job_id, job_number FROM old_rows EXCEPT SELECT job_id, job_number FROM new_rows)
                UNION ALL
                (SELECT job_id, job_number FROM new_rows EXCEPT SELECT job_id, job_number FROM old_rows)'
        END;
        affected := '
            SELECT p.*
            FROM (
                SELECT p.payment_id
                FROM changed c
                JOIN raw.payments p
                    ON p.job_id_ref = c.job_id AND p.job_id_ref IS NOT NULL AND p.job_id IS DISTINCT FROM p.job_id_ref
                UNION
                SELECT p.payment_id
                FROM changed c
                JOIN raw.payments p ON p.job_number_ref = c.job_number AND p.job_id IS NULL
                UNION
                SELECT p.payment_id
                FROM changed c
                JOIN raw.jobs j ON j.job_number = c.job_number AND j.job_id <> c.job_id
                JOIN raw.payments p ON p.job_id = j.job_id
                UNION
                SELECT p.payment_id
                FROM changed c
                JOIN raw.payments p ON p.job_id = c.job_id AND p.job_id IS DISTINCT FROM p.job_id_ref
            ) a
            JOIN raw.payments p ON p.payment_id = a.payment_id';
    ELSE
        -- as they are: the planner knows how many rows a statement changed, and the table need not be read again
        changed := 'SELECT payment_id, job_id, job_id_ref, job_number_ref FROM new_rows';
        IF TG_OP = 'UPDATE' THEN
            changed := changed || ' EXCEPT SELECT payment_id, job_id, job_id_ref, job_number_ref FROM old_rows';
        END IF;
        affected := 'SELECT * FROM changed';
    END IF;
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM old_rows) THEN
            RETURN NULL;
        END IF;
    ELSIF NOT EXISTS (SELECT FROM new_rows) THEN
        RETURN NULL;
    END IF;
    PERFORM raw.lock_links();
    IF NOT EXISTS (SELECT FROM raw.payments) THEN
        RETURN NULL;
    END IF;
    IF TG_TABLE_NAME = 'jobs' THEN
        IF TG_OP <> 'DELETE' THEN
            SELECT array_agg(r.job_id), array_agg(r.job_number) INTO ids, numbers
            FROM (SELECT job_id, job_number FROM new_rows LIMIT few + 1) r;
        END IF;
        IF TG_OP <> 'INSERT' THEN
            SELECT ids || array_agg(r.job_id), numbers || array_agg(r.job_number) INTO ids, numbers
            FROM (SELECT job_id, job_number FROM old_rows LIMIT few + 1) r;
        END IF;
        IF cardinality(ids) <= few AND NOT raw.may_link(ids, numbers) THEN
            RETURN NULL;
        END IF;
    END IF;
    PERFORM raw.correct_statistics('raw.jobs');
    PERFORM raw.correct_statistics('raw.payments');
    EXECUTE format(
        'WITH changed AS MATERIALIZED (%s),
        found AS MATERIALIZED (
            SELECT a.payment_id, coalesce(by_id.job_id, by_number.job_id) AS job_id
            FROM (%s) a
            LEFT JOIN raw.jobs by_id ON by_id.job_id = a.job_id_ref
            LEFT JOIN raw.jobs_by_number by_number ON by_number.job_number = a.job_number_ref
            WHERE a.job_id IS DISTINCT FROM coalesce(by_id.job_id, by_number.job_id)
        )
        UPDATE raw.payments linked SET job_id = found.job_id
        FROM found
        WHERE linked.payment_id = found.payment_id AND linked.job_id IS DISTINCT FROM found.job_id',
        changed, affected
    );
    RETURN NULL;
END $$;
COMMENT ON FUNCTION raw.relink_payments IS
    'Trigger: links payments to the job that their reference names: by id first, else by a number that names exactly '
    'one job.';

-- A deleted payment affects the month that its job has now: a job that moves at the same time must wait.
CREATE FUNCTION raw.lock_links_of_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM old_rows) THEN
        PERFORM raw.lock_links();
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION raw.lock_links_of_deleted IS 'Trigger: takes the lock of the links when payments are deleted.';

-- Corrections by hand. The loader fills job_id_ref and job_number_ref, as far as the reference can be either; a person
-- enters job_ref or the job itself. pg_trigger_depth excludes the links that triggers and foreign keys make.
CREATE FUNCTION raw.resolve_job_reference() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    by_hand boolean := NEW.job_id IS NOT NULL;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        by_hand := NEW.job_id IS DISTINCT FROM OLD.job_id;
    END IF;
    IF by_hand THEN
        -- the job itself: the payment stays linked to it, or to none
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
COMMENT ON FUNCTION raw.resolve_job_reference IS
    'Trigger: links a payment inserted or corrected by hand by its job_ref (a job_id, or else a number), or to the job '
    'given as job_id.';
CREATE TRIGGER resolve_inserted BEFORE INSERT ON raw.payments
    FOR EACH ROW WHEN (
        NEW.job_id_ref IS NULL AND NEW.job_number_ref IS NULL AND (NEW.job_ref IS NOT NULL OR NEW.job_id IS NOT NULL)
    ) EXECUTE FUNCTION raw.resolve_job_reference();
CREATE TRIGGER resolve_updated BEFORE UPDATE OF job_ref, job_id ON raw.payments
    FOR EACH ROW WHEN (
        pg_trigger_depth() = 0
        AND (NEW.job_ref, NEW.job_id) IS DISTINCT FROM (OLD.job_ref, OLD.job_id)
        AND (NEW.job_id_ref, NEW.job_number_ref, NEW.file_id, NEW.record_no)
            IS NOT DISTINCT FROM (OLD.job_id_ref, OLD.job_number_ref, OLD.file_id, OLD.record_no)
    ) EXECUTE FUNCTION raw.resolve_job_reference();

CREATE FUNCTION raw.after_bulk_load(relation regclass, file bigint, was_empty boolean) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    table_name text := (SELECT relname FROM pg_class WHERE oid = relation);
BEGIN
    IF was_empty THEN
        -- one probe of an index for each month
        EXECUTE format(
            'INSERT INTO analytics.stale_months (month, table_name, operation)
            SELECT m.month, %L, ''insert''
            FROM analytics.every_month() AS m (month)
            CROSS JOIN LATERAL (
                SELECT FROM (%s) r WHERE r.day >= m.month AND r.day < analytics.next_month(m.month) LIMIT 1
            ) AS probe',
            table_name, analytics.rows_that_matter(relation, relation::text)
        );
    ELSE
        EXECUTE analytics.queue_months_of(
            NULL, analytics.rows_that_matter(relation, format('(SELECT * FROM %s WHERE file_id = %s)', relation, file)),
            table_name, 'insert'
        );
    END IF;
END $$;
COMMENT ON FUNCTION raw.after_bulk_load IS
    'Notes the months of a file''s rows, for a load that inserted all of them without the trigger note_stale_months.';

-- Triggers fire in the order of their names: links first, then the months.
SELECT analytics.after_statement('raw.jobs', 'a_relink', 'raw.relink_payments()', '{INSERT, UPDATE, DELETE}');
SELECT analytics.after_statement('raw.payments', 'a_relink', 'raw.relink_payments()', '{INSERT, UPDATE}');
SELECT analytics.after_statement('raw.payments', 'a_relink', 'raw.lock_links_of_deleted()', '{DELETE}');

SELECT analytics.after_statement(
    relation, 'b_stale', 'analytics.note_stale_months()', '{INSERT, UPDATE, DELETE, TRUNCATE}'
)
FROM unnest(
    '{raw.jobs, raw.payments, raw.calls, raw.elocals_leads, raw.proref_leads, raw.workiz_leads,
    raw.google_spend}'::regclass[]
) AS relation;

SELECT analytics.after_statement(
    relation, 'b_stale', 'analytics.note_every_month()', '{INSERT, UPDATE, DELETE, TRUNCATE}'
)
FROM unnest('{analytics.lead_channels, analytics.channel_aliases}'::regclass[]) AS relation;
SELECT analytics.after_statement(
    'analytics.source_names', 'b_stale', 'analytics.note_every_month()', '{INSERT, UPDATE}'
);

-- The lock keeps two loads from waiting for each other's names: each would hold one that the other wants. It is taken
-- only for names that are new, and a load takes it after the lock of the links.
CREATE FUNCTION analytics.note_source_names() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    names text[];
    spelled text[];
BEGIN
    EXECUTE format(
        'SELECT array_agg(first.folded), array_agg(first.spelled)
        FROM (
            SELECT DISTINCT ON (s.folded) s.folded, raw.tidy(s.spelled) AS spelled
            FROM (SELECT %1$I AS folded, %2$I AS spelled, min(record_no) AS record_no FROM new_rows GROUP BY 1, 2) s
            WHERE s.folded <> %3$L AND NOT EXISTS (SELECT FROM analytics.source_names n WHERE n.folded = s.folded)
            ORDER BY s.folded, s.record_no, raw.tidy(s.spelled) COLLATE "C"
        ) first',
        TG_ARGV[0] || '_folded', TG_ARGV[0], ''
    ) INTO names, spelled;
    IF names IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(hashtextextended('analytics:source_names', 0));
        INSERT INTO analytics.source_names (folded, shown)
        SELECT * FROM unnest(names, spelled)
        ON CONFLICT (folded) DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION analytics.note_source_names IS
    'Trigger: names new sources as they are spelled where they first occur, by the order of the records in their file.';
SELECT analytics.after_statement(
    s.relation, 'c_names', format('analytics.note_source_names(%L)', s.given), '{INSERT, UPDATE}'
)
FROM (VALUES
    ('raw.jobs'::regclass, 'source'), ('raw.calls', 'flow'), ('analytics.targets', 'source')
) AS s (relation, given);
