-- The raw layer: what the exports contain, typed, one table per source, and the ledger of the files it came from.
-- Money is numeric, never float. Dates are local dates in the business timezone, computed by the loader.

CREATE SCHEMA IF NOT EXISTS raw;
CREATE SCHEMA IF NOT EXISTS analytics;
COMMENT ON SCHEMA raw IS 'Sources as exported, with the ledger of files and the quarantine.';
COMMENT ON SCHEMA analytics IS 'Channel rules, facts, daily and monthly metrics, and targets: what Grafana reads.';

CREATE FUNCTION analytics.describe(relations regclass[], meanings text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format(
            'COMMENT ON COLUMN %s.%I IS %L', coalesce(a.attrelid::regclass, relations[1]), m.parts[1],
            regexp_replace(m.parts[2], '\s+', ' ', 'g')
        )
        FROM regexp_matches(meanings, '^ {4}(\w+): (.+(?:\n {8}.+)*)$', 'gn') AS m (parts)
        LEFT JOIN pg_attribute a ON a.attname = m.parts[1] AND a.attrelid = ANY (relations)
    LOOP
        EXECUTE statement;
    END LOOP;
END $$;
COMMENT ON FUNCTION analytics.describe IS
    'Comments the columns that these relations have, one "    column: meaning" per line; continuation lines are '
    'indented by eight spaces. Fails on a column that none of them has.';

CREATE TABLE analytics.business (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    timezone text NOT NULL,
    franchise text NOT NULL DEFAULT ''
);
COMMENT ON TABLE analytics.business IS
    'One row: whose database this is, and the business timezone in which every date of it was computed. A run of '
    'another franchise, or in another timezone, is refused.';
SELECT analytics.describe('{analytics.business}', $$
    only_row: Always true: there is one row.
    timezone: IANA name, e.g. America/New_York.
    franchise: The franchise whose rows these are; empty when there is only one business.
$$);

CREATE FUNCTION analytics.today() RETURNS date LANGUAGE sql STABLE
RETURN (SELECT (now() AT TIME ZONE b.timezone)::date FROM analytics.business b);
COMMENT ON FUNCTION analytics.today IS 'The current local date in the business timezone.';

CREATE FUNCTION raw.tidy(value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN btrim(regexp_replace(value, '[\s\u00a0]+', ' ', 'g'));
COMMENT ON FUNCTION raw.tidy IS 'A text trimmed, with inner white space collapsed.';

-- Nearly every value is tidy ASCII already: one match tells, and costs less than half of what tidying does.
CREATE FUNCTION raw.fold(value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
    WHEN value ~ '^[!-~]+( [!-~]+)*$' THEN lower(value COLLATE "C")
    ELSE lower(raw.tidy(coalesce(value, '')))
END;
COMMENT ON FUNCTION raw.fold IS
    'The form in which types, sources, flows and statuses are compared: trimmed, inner white space collapsed, '
    'lower case; NULL as empty text.';

CREATE TABLE raw.source_files (
    file_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text,
    path text NOT NULL,
    sha256 text NOT NULL,
    size_bytes bigint NOT NULL,
    modified_at timestamptz NOT NULL,
    etag text,
    declaration_version int,
    exported_at timestamptz NOT NULL,
    exported_at_from text NOT NULL CHECK (exported_at_from IN ('name', 'mtime')),
    connector text,
    status text NOT NULL CHECK (
        status IN ('loaded', 'refused', 'unrecognized', 'same_content', 'withdrawn', 'missing')
    ),
    same_as bigint REFERENCES raw.source_files,
    message text,
    encoding text,
    delimiter text,
    mapping jsonb,
    unknown_columns text[] NOT NULL DEFAULT '{}',
    warnings text[] NOT NULL DEFAULT '{}',
    records_read int NOT NULL DEFAULT 0,
    inserted int NOT NULL DEFAULT 0,
    updated int NOT NULL DEFAULT 0,
    unchanged int NOT NULL DEFAULT 0,
    duplicates int NOT NULL DEFAULT 0,
    superseded int NOT NULL DEFAULT 0,
    quarantined int NOT NULL DEFAULT 0,
    summary_lines int NOT NULL DEFAULT 0,
    stated_total numeric,
    accepted_total numeric,
    total_agrees boolean,
    first_date date,
    last_date date,
    run_id text,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT source_files_content UNIQUE NULLS NOT DISTINCT (source, path, sha256),
    CONSTRAINT source_files_add_up CHECK (
        records_read = inserted + updated + unchanged + duplicates + superseded + quarantined + summary_lines
    ),
    CONSTRAINT source_files_message CHECK (status IN ('loaded', 'same_content') OR message IS NOT NULL)
);
CREATE INDEX source_files_order ON raw.source_files (source, exported_at, path);
CREATE INDEX source_files_path ON raw.source_files (path);
COMMENT ON TABLE raw.source_files IS
    'The ledger: one row for each content seen at each path of the landing folder, and what became of its records. '
    'Nothing is lost silently: records_read equals the sum of the counts.';
SELECT analytics.describe('{raw.source_files}', $$
    file_id: Number of the ledger entry; raw rows refer to it.
    source: jobs, payments, calls, elocals_leads, proref_leads, workiz_leads, google_spend or targets; NULL if
        unrecognized.
    path: Path below the landing folder.
    sha256: Hash of the content. Together with declaration_version it tells whether the file is new.
    size_bytes: Size when read, in bytes.
    modified_at: The file's modification time when last seen; if it, the size and the etag are unchanged, the file isn't
        hashed.
    etag: What the object storage called this version of the object when last seen, which is no hash of its content;
        NULL for a file of a local folder.
    declaration_version: Version of the source declaration that read the file; a newer declaration reads it again.
    exported_at: When the export was made; frozen when the content was first seen, and never earlier than that of the
        content it replaced at its path. Files apply in the order (exported_at, path, first_seen_at).
    exported_at_from: name: a date-time in the file's name; mtime: the modification time.
    connector: The connector that wrote the file, as its first line says; NULL for a file that a person put there.
    status: loaded; refused (unreadable as this source: nothing of it was loaded); unrecognized (no source fits);
        same_content (same bytes as another file, which was loaded); withdrawn (taken back by a person: this content
        isn't loaded under any name); missing (no longer in the landing folder when its source was rebuilt).
    same_as: For same_content: the entry with these bytes.
    message: Why the file was not loaded, and the remedy.
    encoding: Encoding found.
    delimiter: Delimiter found; NULL for a workbook and for JSON Lines.
    mapping: The header found for each column name.
    unknown_columns: Headers that match no column.
    warnings: What a person should know although the file was accepted.
    records_read: Records read, summary lines included.
    inserted: Records that made a new row.
    updated: Records that changed a row of an older export.
    unchanged: Records equal to the row already in the table.
    duplicates: Identical records with the same key, beyond the first. In Google spend, records identical in every
        cell, unless the file's total includes them.
    superseded: Records that differ from what a newer export already loaded for their key; for Google spend also
        those of a month with quarantined records, if another file has the complete month.
    quarantined: Records in raw.rejected_rows.
    summary_lines: Lines with totals and repeated headers, which are skipped.
    stated_total: The file's own total, of several the narrowest that covers its records; NULL if it has none.
    accepted_total: The sum of its accepted records, repeats left out; NULL if it has no total.
    total_agrees: Whether the two agree within half a cent for each record; NULL if it has no total.
    first_date: Earliest date among the accepted records.
    last_date: Latest date among the accepted records.
    run_id: The Dagster run that read the file; NULL if none did.
    first_seen_at: When this content was first seen at this path; reset if other content was there in between.
    finished_at: When it was last read.
$$);

CREATE TABLE raw.rejected_rows (
    rejected_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file_id bigint NOT NULL REFERENCES raw.source_files,
    source text NOT NULL,
    record_no int NOT NULL,
    line_no int NOT NULL,
    row_key text,
    reasons jsonb NOT NULL,
    record jsonb NOT NULL,
    status text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'closed', 'dismissed')),
    note text,
    rejected_at timestamptz NOT NULL DEFAULT now(),
    closed_at timestamptz,
    CONSTRAINT rejected_rows_record UNIQUE (file_id, record_no),
    CONSTRAINT rejected_rows_reasons CHECK (
        jsonb_typeof(reasons) = 'array' AND reasons <> '[]' AND NOT reasons @? '$[*] ? (!exists(@.code))'
    )
);
CREATE INDEX rejected_rows_open ON raw.rejected_rows (source, row_key) WHERE status = 'open';
COMMENT ON TABLE raw.rejected_rows IS
    'The quarantine: records that were not loaded, as found in the file, with reasons. Dismiss one with UPDATE '
    'raw.rejected_rows SET status = ''dismissed'', note = ''why'' WHERE rejected_id = ...';
SELECT analytics.describe('{raw.rejected_rows}', $$
    rejected_id: Number of the quarantined record.
    file_id: The file that contains it.
    source: The file's source.
    record_no: Position in the file, counted from 1 after the header.
    line_no: Line of the file where the record begins, from 1; in a workbook, its row.
    row_key: The record's key, if it could be read; the record closes when a newer export brings a valid one with
        this key.
    reasons: Why it was not loaded: objects with code, column (header as found), found (left out for personal data),
        accepted and remedy. raw.reason_text renders one as text.
    record: The record: the cell under each header, both as found.
    status: open; closed (a newer export brought the key, or the path got new content); dismissed (by a person).
    note: Why it was closed or dismissed.
    rejected_at: When it was quarantined.
    closed_at: When it was closed or dismissed.
$$);

CREATE FUNCTION raw.reason_text(reason jsonb) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE
RETURN concat_ws(
    '; ',
    concat_ws(
        ': ',
        nullif(concat_ws(' ', reason ->> 'column', (reason -> 'found')::text), ''),
        replace(reason ->> 'code', '_', ' ')
    ),
    'accepted: ' || (reason ->> 'accepted'),
    reason ->> 'remedy'
);
COMMENT ON FUNCTION raw.reason_text(jsonb) IS
    'Renders one reason as text, exactly as the command line shows it; leaves out what is missing.';

CREATE TABLE raw.vanished_rows (
    source text NOT NULL,
    row_key text NOT NULL,
    file_id bigint NOT NULL REFERENCES raw.source_files,
    noted_at timestamptz NOT NULL DEFAULT now(),
    dismissed_at timestamptz,
    PRIMARY KEY (source, row_key)
);
COMMENT ON TABLE raw.vanished_rows IS
    'Rows of older exports that are missing from a newer export of their dates. They are kept and still count: delete '
    'a row from its table if it is really gone, or dismiss the report with UPDATE raw.vanished_rows SET '
    'dismissed_at = now() WHERE ... A row that comes back is removed from here.';
SELECT analytics.describe('{raw.vanished_rows}', $$
    source: The source, which names the table.
    row_key: The row's key in that table; for a target: month, folded source, segment.
    file_id: The first file without the row.
    noted_at: When that was seen.
    dismissed_at: When a person confirmed that the row is right as it is; NULL while it is reported.
$$);

CREATE TABLE analytics.source_expectations (
    source text PRIMARY KEY,
    warn_days int CHECK (warn_days >= 0),
    error_days int CHECK (error_days >= 0),
    note text,
    CONSTRAINT source_expectations_order CHECK (warn_days <= error_days)
);
COMMENT ON TABLE analytics.source_expectations IS
    'How old the newest row of a source may be, where its declaration doesn''t fit. Both limits replace those of the '
    'declaration; NULL is no limit. For a source that is no longer used: INSERT INTO analytics.source_expectations '
    '(source, warn_days, error_days, note) VALUES (''elocals_leads'', NULL, NULL, ''we left eLocals'')';
SELECT analytics.describe('{analytics.source_expectations}', $$
    source: The source, as its landing folder is called.
    warn_days: The check `fresh` warns when the newest row is older than so many days; NULL: never.
    error_days: It fails, and an alert is sent, when the newest row is older than so many days; NULL: never.
    note: Why.
$$);

-- Ids and numbers are compared byte by byte (COLLATE "C"), which builds and searches their indexes faster.
-- Raw rows carry the file and record that last changed them. file_id has no foreign key: ledger entries are
-- never deleted, and checking every row would double the time of a load.

CREATE TABLE raw.jobs (
    job_id text COLLATE "C" PRIMARY KEY CHECK (job_id <> ''),
    job_number text COLLATE "C",
    type text,
    source text,
    status text,
    created_at timestamptz NOT NULL,
    scheduled_at timestamptz,
    ended_at timestamptz,
    job_date date NOT NULL CHECK (job_date BETWEEN '2000-01-01' AND '2100-12-31'),
    technician text,
    zip text,
    total numeric(12, 2) CHECK (total <> 'NaN'),
    type_folded text NOT NULL GENERATED ALWAYS AS (raw.fold(type)) STORED,
    source_folded text NOT NULL GENERATED ALWAYS AS (raw.fold(source)) STORED,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX jobs_job_date ON raw.jobs (job_date);
CREATE INDEX jobs_job_number ON raw.jobs (job_number) WHERE job_number IS NOT NULL;
CREATE INDEX jobs_known_by_number ON raw.jobs (job_number) WHERE job_id = job_number;
COMMENT ON TABLE raw.jobs IS 'Jobs of the field-service system, one row per job.';
SELECT analytics.describe('{raw.jobs}', $$
    job_id: The job's UUID, verbatim; its number if the exports have no UUID.
    job_number: The number that people use, without zero padding.
    type: The job's type as given (trimmed, white space collapsed); the rules compare type_folded.
    source: Where the job came from, as given (trimmed, white space collapsed).
    status: Status as given. No rule uses it: canceled jobs count too.
    created_at: When the job was created.
    scheduled_at: Appointment, if there is one.
    ended_at: End of the appointment, if there is one.
    job_date: Local date of created_at: the day that the job, its revenue and its leads belong to.
    technician: Technician as given.
    zip: Postal code as given.
    total: The invoice's total in dollars. Not revenue, which is what was paid.
    type_folded: The type in the form in which the rules compare it.
    source_folded: The source in the form in which analytics.spellings has it.
$$);

CREATE TABLE raw.payments (
    payment_id text COLLATE "C" PRIMARY KEY CHECK (payment_id <> ''),
    job_ref text,
    job_id_ref text COLLATE "C",
    job_number_ref text COLLATE "C",
    job_id text COLLATE "C" REFERENCES raw.jobs ON UPDATE CASCADE ON DELETE SET NULL,
    paid_at timestamptz,
    paid_date date NOT NULL CHECK (paid_date BETWEEN '2000-01-01' AND '2100-12-31'),
    amount numeric(12, 2) NOT NULL CHECK (amount <> 'NaN'),
    method text,
    status text,
    confirmation_code text,
    counts boolean NOT NULL GENERATED ALWAYS AS (
        raw.fold(status) NOT IN ('failed', 'pending', 'voided', 'declined')
    ) STORED,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payments_job ON raw.payments (job_id) INCLUDE (amount, counts);
CREATE INDEX payments_paid_date ON raw.payments (paid_date);
CREATE INDEX payments_orphans ON raw.payments (paid_date) WHERE job_id IS NULL AND counts;
CREATE INDEX payments_waiting_for_id ON raw.payments (job_id_ref)
WHERE job_id_ref IS NOT NULL AND job_id IS DISTINCT FROM job_id_ref;
CREATE INDEX payments_waiting_for_number ON raw.payments (job_number_ref) WHERE job_id IS NULL;
COMMENT ON TABLE raw.payments IS 'Payments and refunds, one row each, linked to their job as soon as it is known.';
SELECT analytics.describe('{raw.payments}', $$
    payment_id: The export's payment id; else a hash of job, date, amount, method and confirmation code with the
        occurrence number.
    job_ref: The job as named by the export.
    job_id_ref: job_ref if it can be a job_id.
    job_number_ref: job_ref if it can be a job number, without zero padding.
    job_id: The job; NULL while it is unknown. Kept by triggers: the arrival of the job links its waiting payments.
    paid_at: When it was paid, if the export has the time.
    paid_date: Local date of the payment.
    amount: Dollars, gross; refunds are negative.
    method: Payment method as given.
    status: Payment status as given.
    confirmation_code: Confirmation code as given.
    counts: False exactly for failed, pending, voided and declined payments: they are not revenue.
$$);

CREATE TABLE raw.calls (
    call_id text COLLATE "C" PRIMARY KEY CHECK (call_id <> ''),
    started_at timestamptz NOT NULL,
    call_date date NOT NULL CHECK (call_date BETWEEN '2000-01-01' AND '2100-12-31'),
    from_number text,
    to_number text,
    flow text,
    answered boolean NOT NULL DEFAULT false,
    answered_by text,
    duration_seconds int CHECK (duration_seconds >= 0),
    job_ref text,
    flow_folded text NOT NULL GENERATED ALWAYS AS (raw.fold(flow)) STORED,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX calls_call_date ON raw.calls (call_date);
COMMENT ON TABLE raw.calls IS 'Phone calls, one row each.';
SELECT analytics.describe('{raw.calls}', $$
    call_id: Hash of from, to and minute with the number of the call in that minute: the export has no id.
    started_at: When the call came in.
    call_date: Local date of the call.
    from_number: Caller's number as given.
    to_number: Number called, as given.
    flow: Call flow as given; analytics.spellings has the source that it means.
    answered: Whether the call was answered.
    answered_by: Person who answered, as given.
    duration_seconds: Duration in seconds.
    job_ref: The job that the call led to, as given.
    flow_folded: The flow in the form in which analytics.spellings has it.
$$);

CREATE TABLE raw.elocals_leads (
    lead_id text COLLATE "C" PRIMARY KEY CHECK (lead_id <> ''),
    lead_at timestamptz NOT NULL,
    lead_date date NOT NULL CHECK (lead_date BETWEEN '2000-01-01' AND '2100-12-31'),
    cost numeric(12, 2) CHECK (cost <> 'NaN'),
    status text,
    caller_number text,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX elocals_leads_lead_date ON raw.elocals_leads (lead_date);
COMMENT ON TABLE raw.elocals_leads IS 'Leads bought from eLocals, one row each.';
SELECT analytics.describe('{raw.elocals_leads}', $$
    lead_id: eLocals' unique id.
    lead_at: When the lead came in.
    lead_date: Local date of the lead.
    cost: Price in dollars. Credits come up to 96 hours later, in a later export. Only rows above zero are leads.
    status: Status as given.
    caller_number: Caller's number as given.
$$);

CREATE TABLE raw.proref_leads (
    lead_id text COLLATE "C" PRIMARY KEY CHECK (lead_id <> ''),
    lead_at timestamptz NOT NULL,
    lead_date date NOT NULL CHECK (lead_date BETWEEN '2000-01-01' AND '2100-12-31'),
    current_status text,
    category text,
    zip text,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX proref_leads_lead_date ON raw.proref_leads (lead_date);
COMMENT ON TABLE raw.proref_leads IS 'Leads from Pro Referral, one row each.';
SELECT analytics.describe('{raw.proref_leads}', $$
    lead_id: Pro Referral's lead id.
    lead_at: When the lead came in.
    lead_date: Local date of the lead.
    current_status: Status as given. Every lead counts unless it is Passed; a blank status counts.
    category: Category as given.
    zip: Postal code as given.
$$);

CREATE TABLE raw.workiz_leads (
    lead_id text COLLATE "C" PRIMARY KEY CHECK (lead_id <> ''),
    lead_number text COLLATE "C",
    created_at timestamptz NOT NULL,
    lead_date date NOT NULL CHECK (lead_date BETWEEN '2000-01-01' AND '2100-12-31'),
    status text,
    source text,
    job_type text,
    scheduled_at timestamptz,
    assigned text,
    converted boolean,
    converted_at timestamptz,
    zip text,
    service_area text,
    source_folded text NOT NULL GENERATED ALWAYS AS (raw.fold(source)) STORED,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX workiz_leads_lead_date ON raw.workiz_leads (lead_date);
COMMENT ON TABLE raw.workiz_leads IS
    'Leads of the field-service system, one row each. They change no metric, unless a channel has the rule '
    'workiz_leads.';
SELECT analytics.describe('{raw.workiz_leads}', $$
    lead_id: The lead's UUID, verbatim.
    lead_number: The number that people use, without zero padding.
    created_at: When the lead was created.
    lead_date: Local date of created_at.
    status: Status as given.
    source: Where the lead came from, as given (trimmed, white space collapsed).
    job_type: The type of job that is asked for, as given.
    scheduled_at: Appointment, if there is one.
    assigned: Who is assigned, as given.
    converted: Whether the lead became a job; NULL if the file doesn't say.
    converted_at: When it became a job, as given.
    zip: Postal code as given.
    service_area: Service area as given.
    source_folded: The source in the form in which analytics.spellings has it.
$$);

CREATE TABLE raw.google_spend (
    month date NOT NULL CHECK (month BETWEEN '2000-01-01' AND '2100-12-01' AND extract(day FROM month) = 1),
    campaign text NOT NULL DEFAULT 'all',
    amount numeric(12, 2) NOT NULL CHECK (amount <> 'NaN'),
    covered_to date NOT NULL,
    complete_month boolean NOT NULL DEFAULT true,
    campaign_id text NOT NULL DEFAULT '',
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT google_spend_pkey PRIMARY KEY (month, campaign_id, campaign),
    CONSTRAINT google_spend_covered CHECK (covered_to >= month AND covered_to < month + interval '1 month')
);
COMMENT ON TABLE raw.google_spend IS
    'Google Ads spend by month and campaign. The newest file that covers a month replaces all of its rows. Campaigns '
    'of one name have a row each where the file has their ids; the metrics add them up.';
SELECT analytics.describe(
    '{raw.jobs, raw.payments, raw.calls, raw.elocals_leads, raw.proref_leads, raw.workiz_leads, raw.google_spend}', $$
    file_id: raw.source_files entry that last changed the row; NULL for a row written by hand.
    record_no: Record in that file.
    updated_at: When a load last changed the row.
$$);
SELECT analytics.describe('{raw.google_spend}', $$
    month: First day of the month.
    campaign: Campaign; all if the file has none.
    campaign_id: Google's id of the campaign, empty if the file has none.
    amount: Dollars spent in the month up to covered_to.
    covered_to: Last day that the amount covers.
    complete_month: false if the file has quarantined records of this month: the row counts only until a file has
        the complete month.
    record_no: First record of the month and campaign in that file.
$$);
