-- The raw layer: what the exports say, typed, one table a source, and the ledger of the files it came from.
-- Money is numeric, never float. Dates are local dates in the business timezone, written by the loader.

CREATE SCHEMA IF NOT EXISTS raw;
CREATE SCHEMA IF NOT EXISTS analytics;
COMMENT ON SCHEMA raw IS 'Raw sources as exported, with the ledger of files and the quarantine.';
COMMENT ON SCHEMA analytics IS 'Channel rules, facts, daily and monthly metrics, targets: what Grafana reads.';

CREATE TABLE analytics.business (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    timezone text NOT NULL
);
COMMENT ON TABLE analytics.business IS 'One row: the business timezone that every date in this database was made in. A run with another one is refused.';
COMMENT ON COLUMN analytics.business.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN analytics.business.timezone IS 'IANA name, e.g. America/New_York.';

CREATE FUNCTION analytics.today() RETURNS date LANGUAGE sql STABLE
RETURN (SELECT (now() AT TIME ZONE b.timezone)::date FROM analytics.business b);
COMMENT ON FUNCTION analytics.today() IS 'The current local date in the business timezone.';

CREATE FUNCTION raw.fold(value text) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN lower(btrim(regexp_replace(coalesce(value, ''), '[\s\u00a0]+', ' ', 'g')));
COMMENT ON FUNCTION raw.fold(text) IS 'How types, sources, flows and statuses are compared: trimmed, inner white space collapsed, case folded; NULL as an empty text.';

CREATE TABLE raw.source_files (
    file_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source text,
    path text NOT NULL,
    sha256 text NOT NULL,
    size_bytes bigint NOT NULL,
    modified_at timestamptz NOT NULL,
    declaration_version int,
    exported_at timestamptz NOT NULL,
    exported_at_from text NOT NULL CHECK (exported_at_from IN ('name', 'mtime')),
    status text NOT NULL CHECK (status IN ('loaded', 'refused', 'unrecognized', 'same_content')),
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
    first_date date,
    last_date date,
    run_id text,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT source_files_content UNIQUE NULLS NOT DISTINCT (source, path, sha256),
    CONSTRAINT source_files_add_up CHECK (
        records_read = inserted + updated + unchanged + duplicates + superseded + quarantined + summary_lines
    ),
    CONSTRAINT source_files_message CHECK (status NOT IN ('refused', 'unrecognized') OR message IS NOT NULL)
);
CREATE INDEX source_files_order ON raw.source_files (source, exported_at, path);
CREATE INDEX source_files_path ON raw.source_files (path);
COMMENT ON TABLE raw.source_files IS 'The ledger: one row for each content seen at each path of the landing folder, and what became of its records. Nothing is lost silently: records_read equals the sum of the counts.';
COMMENT ON COLUMN raw.source_files.file_id IS 'Number of the ledger entry; raw rows refer to it.';
COMMENT ON COLUMN raw.source_files.source IS 'jobs, payments, calls, elocals_leads, proref_leads, google_spend or targets; NULL where unrecognized.';
COMMENT ON COLUMN raw.source_files.path IS 'Path below the landing folder.';
COMMENT ON COLUMN raw.source_files.sha256 IS 'Hash of the content. With declaration_version it says whether the file is new.';
COMMENT ON COLUMN raw.source_files.size_bytes IS 'Size when read, in bytes.';
COMMENT ON COLUMN raw.source_files.modified_at IS 'The file''s modification time when last seen; with the size it spares hashing an unchanged file.';
COMMENT ON COLUMN raw.source_files.declaration_version IS 'Version of the source declaration that read the file; a newer declaration reads it again.';
COMMENT ON COLUMN raw.source_files.exported_at IS 'When the export was made; frozen when the content was first seen, and never before that of the content which it replaced at its path. Files apply in the order (exported_at, path, first_seen_at).';
COMMENT ON COLUMN raw.source_files.exported_at_from IS 'name: a date-time in the file''s name; mtime: the modification time.';
COMMENT ON COLUMN raw.source_files.status IS 'loaded; refused (unreadable as this source: nothing of it was loaded); unrecognized (no source fits); same_content (same bytes as another file, which was loaded).';
COMMENT ON COLUMN raw.source_files.same_as IS 'For same_content: the entry with these bytes.';
COMMENT ON COLUMN raw.source_files.message IS 'Why it was refused or not recognized, and the remedy.';
COMMENT ON COLUMN raw.source_files.encoding IS 'Encoding found.';
COMMENT ON COLUMN raw.source_files.delimiter IS 'Delimiter found; NULL for a workbook.';
COMMENT ON COLUMN raw.source_files.mapping IS 'Every mapping made: column name to header as found.';
COMMENT ON COLUMN raw.source_files.unknown_columns IS 'Headers that no column wanted.';
COMMENT ON COLUMN raw.source_files.warnings IS 'What a person should know though the file was accepted.';
COMMENT ON COLUMN raw.source_files.records_read IS 'Records read, summary lines included.';
COMMENT ON COLUMN raw.source_files.inserted IS 'Records that made a new row.';
COMMENT ON COLUMN raw.source_files.updated IS 'Records that changed a row of an older export.';
COMMENT ON COLUMN raw.source_files.unchanged IS 'Records that said what the table said already.';
COMMENT ON COLUMN raw.source_files.duplicates IS 'Identical records with one key, beyond the first.';
COMMENT ON COLUMN raw.source_files.superseded IS 'Records whose key a newer export has already said something else about; of Google spend also those of a month with quarantined records, where another file has the month whole.';
COMMENT ON COLUMN raw.source_files.quarantined IS 'Records in raw.rejected_rows.';
COMMENT ON COLUMN raw.source_files.summary_lines IS 'Total lines, skipped.';
COMMENT ON COLUMN raw.source_files.first_date IS 'Earliest date among the accepted records.';
COMMENT ON COLUMN raw.source_files.last_date IS 'Latest date among the accepted records.';
COMMENT ON COLUMN raw.source_files.run_id IS 'The Dagster run that read the file, if one did.';
COMMENT ON COLUMN raw.source_files.first_seen_at IS 'When this content was first seen at this path; again, if other content was there meanwhile.';
COMMENT ON COLUMN raw.source_files.finished_at IS 'When it was last read.';

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
COMMENT ON TABLE raw.rejected_rows IS 'The quarantine: records that were not loaded, as they stand in the file, with reasons. Dismiss one with UPDATE raw.rejected_rows SET status = ''dismissed'', note = ''why'' WHERE rejected_id = ...';
COMMENT ON COLUMN raw.rejected_rows.rejected_id IS 'Number of the quarantined record.';
COMMENT ON COLUMN raw.rejected_rows.file_id IS 'The file it stands in.';
COMMENT ON COLUMN raw.rejected_rows.source IS 'The file''s source.';
COMMENT ON COLUMN raw.rejected_rows.record_no IS 'Which record of the file, from 1 after the header.';
COMMENT ON COLUMN raw.rejected_rows.line_no IS 'Line of the file where the record begins, from 1; in a workbook, its row.';
COMMENT ON COLUMN raw.rejected_rows.row_key IS 'The record''s key where it could be read; the record closes when a newer export brings this key in good order.';
COMMENT ON COLUMN raw.rejected_rows.reasons IS 'Why: objects with code, column (header as found), found (not for personal data), accepted and remedy; raw.reason_text makes text of one.';
COMMENT ON COLUMN raw.rejected_rows.record IS 'The record: header as found to cell as found.';
COMMENT ON COLUMN raw.rejected_rows.status IS 'open; closed (a newer export brought the key, or the path got new content); dismissed (by a person).';
COMMENT ON COLUMN raw.rejected_rows.note IS 'Why it was closed or dismissed.';
COMMENT ON COLUMN raw.rejected_rows.rejected_at IS 'When it was quarantined.';
COMMENT ON COLUMN raw.rejected_rows.closed_at IS 'When it was closed or dismissed.';

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
COMMENT ON FUNCTION raw.reason_text(jsonb) IS 'One reason as text for people, exactly as the command line shows it; what is missing is left out.';

CREATE TABLE raw.vanished_rows (
    source text NOT NULL,
    row_key text NOT NULL,
    file_id bigint NOT NULL REFERENCES raw.source_files,
    noted_at timestamptz NOT NULL DEFAULT now(),
    dismissed_at timestamptz,
    PRIMARY KEY (source, row_key)
);
COMMENT ON TABLE raw.vanished_rows IS 'Rows of older exports that a newer export of their dates does not have. They are kept and count: delete a row from its table if it is really gone, or dismiss the report with UPDATE raw.vanished_rows SET dismissed_at = now() WHERE ... A row that comes back is forgotten here.';
COMMENT ON COLUMN raw.vanished_rows.source IS 'The source: names the table.';
COMMENT ON COLUMN raw.vanished_rows.row_key IS 'The row''s key in that table; of a target: month, source, segment.';
COMMENT ON COLUMN raw.vanished_rows.file_id IS 'The first file that did not have the row.';
COMMENT ON COLUMN raw.vanished_rows.noted_at IS 'When that was seen.';
COMMENT ON COLUMN raw.vanished_rows.dismissed_at IS 'When a person said that the row is right as it is; NULL while it is reported.';

-- Raw rows carry the file and record that last changed them. file_id has no foreign key: ledger entries are
-- never deleted, and a check per row would double the time of a load.

CREATE TABLE raw.jobs (
    job_id text PRIMARY KEY CHECK (job_id <> ''),
    job_number text,
    type text,
    source text,
    status text,
    created_at timestamptz NOT NULL,
    scheduled_at timestamptz,
    ended_at timestamptz,
    job_date date NOT NULL CHECK (job_date BETWEEN '2000-01-01' AND '2100-12-31'),
    technician text,
    zip text,
    total numeric(12,2) CHECK (total <> 'NaN'),
    type_folded text NOT NULL GENERATED ALWAYS AS (raw.fold(type)) STORED,
    source_folded text NOT NULL GENERATED ALWAYS AS (raw.fold(source)) STORED,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX jobs_job_date ON raw.jobs (job_date);
CREATE INDEX jobs_job_number ON raw.jobs (job_number) WHERE job_number IS NOT NULL;
COMMENT ON TABLE raw.jobs IS 'Jobs of the field-service system, one row a job.';
COMMENT ON COLUMN raw.jobs.job_id IS 'The job''s UUID, verbatim; its number where the exports have no UUID.';
COMMENT ON COLUMN raw.jobs.job_number IS 'The number people use, without zero padding.';
COMMENT ON COLUMN raw.jobs.type IS 'COD Service, INS Service, COD Repair, INS Repair or any other, as given (trimmed, white space collapsed).';
COMMENT ON COLUMN raw.jobs.source IS 'Where the job came from, as given (trimmed, white space collapsed).';
COMMENT ON COLUMN raw.jobs.status IS 'Status as given. No rule looks at it: canceled jobs count too.';
COMMENT ON COLUMN raw.jobs.created_at IS 'When the job was created.';
COMMENT ON COLUMN raw.jobs.scheduled_at IS 'Appointment, if there is one.';
COMMENT ON COLUMN raw.jobs.ended_at IS 'End of the appointment, if there is one.';
COMMENT ON COLUMN raw.jobs.job_date IS 'Local date of created_at: the day that the job, its revenue and its leads belong to.';
COMMENT ON COLUMN raw.jobs.technician IS 'Technician as given.';
COMMENT ON COLUMN raw.jobs.zip IS 'Postal code as given.';
COMMENT ON COLUMN raw.jobs.total IS 'The invoice''s total in dollars. Not revenue: revenue is what was paid.';
COMMENT ON COLUMN raw.jobs.type_folded IS 'The type as rules compare it.';
COMMENT ON COLUMN raw.jobs.source_folded IS 'The source as analytics.channel_aliases spells it.';
COMMENT ON COLUMN raw.jobs.file_id IS 'raw.source_files entry that last changed the row; NULL for a row written by hand.';
COMMENT ON COLUMN raw.jobs.record_no IS 'Record in that file.';
COMMENT ON COLUMN raw.jobs.updated_at IS 'When the row was last changed by a load.';

CREATE TABLE raw.payments (
    payment_id text PRIMARY KEY CHECK (payment_id <> ''),
    job_ref text,
    job_id_ref text,
    job_number_ref text,
    job_id text REFERENCES raw.jobs ON UPDATE CASCADE ON DELETE SET NULL,
    paid_at timestamptz,
    paid_date date NOT NULL CHECK (paid_date BETWEEN '2000-01-01' AND '2100-12-31'),
    amount numeric(12,2) NOT NULL CHECK (amount <> 'NaN'),
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
CREATE INDEX payments_waiting_for_id ON raw.payments (job_id_ref) WHERE job_id IS DISTINCT FROM job_id_ref;
CREATE INDEX payments_waiting_for_number ON raw.payments (job_number_ref) WHERE job_id IS NULL;
COMMENT ON TABLE raw.payments IS 'Payments and refunds, one row each, linked to their job as soon as it is known.';
COMMENT ON COLUMN raw.payments.payment_id IS 'The export''s payment id; else a hash of job, date, amount, method and confirmation code with the occurrence number.';
COMMENT ON COLUMN raw.payments.job_ref IS 'The job as the export names it.';
COMMENT ON COLUMN raw.payments.job_id_ref IS 'job_ref where it may be a job_id.';
COMMENT ON COLUMN raw.payments.job_number_ref IS 'job_ref where it may be a job number, without zero padding.';
COMMENT ON COLUMN raw.payments.job_id IS 'The job; NULL while it is unknown. Kept by triggers: the arrival of the job links its waiting payments.';
COMMENT ON COLUMN raw.payments.paid_at IS 'When it was paid, where the export has the time.';
COMMENT ON COLUMN raw.payments.paid_date IS 'Local date of the payment.';
COMMENT ON COLUMN raw.payments.amount IS 'Dollars, gross; refunds are negative.';
COMMENT ON COLUMN raw.payments.method IS 'Payment method as given.';
COMMENT ON COLUMN raw.payments.status IS 'Payment status as given.';
COMMENT ON COLUMN raw.payments.confirmation_code IS 'Confirmation code as given.';
COMMENT ON COLUMN raw.payments.counts IS 'False exactly for failed, pending, voided and declined payments: they are no revenue.';
COMMENT ON COLUMN raw.payments.file_id IS 'raw.source_files entry that last changed the row; NULL for a row written by hand.';
COMMENT ON COLUMN raw.payments.record_no IS 'Record in that file.';
COMMENT ON COLUMN raw.payments.updated_at IS 'When the row was last changed by a load.';

CREATE TABLE raw.calls (
    call_id text PRIMARY KEY CHECK (call_id <> ''),
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
COMMENT ON COLUMN raw.calls.call_id IS 'Hash of from, to, time and duration with the occurrence number: the export has no id.';
COMMENT ON COLUMN raw.calls.started_at IS 'When the call came.';
COMMENT ON COLUMN raw.calls.call_date IS 'Local date of the call.';
COMMENT ON COLUMN raw.calls.from_number IS 'Caller''s number as given.';
COMMENT ON COLUMN raw.calls.to_number IS 'Number called, as given.';
COMMENT ON COLUMN raw.calls.flow IS 'Call flow as given: names the channel through analytics.channel_aliases.';
COMMENT ON COLUMN raw.calls.answered IS 'Whether somebody answered.';
COMMENT ON COLUMN raw.calls.answered_by IS 'Who answered, as given.';
COMMENT ON COLUMN raw.calls.duration_seconds IS 'Duration in seconds.';
COMMENT ON COLUMN raw.calls.job_ref IS 'The job that the call led to, as given.';
COMMENT ON COLUMN raw.calls.flow_folded IS 'The flow as analytics.channel_aliases spells it.';
COMMENT ON COLUMN raw.calls.file_id IS 'raw.source_files entry that last changed the row; NULL for a row written by hand.';
COMMENT ON COLUMN raw.calls.record_no IS 'Record in that file.';
COMMENT ON COLUMN raw.calls.updated_at IS 'When the row was last changed by a load.';

CREATE TABLE raw.elocals_leads (
    lead_id text PRIMARY KEY CHECK (lead_id <> ''),
    lead_at timestamptz NOT NULL,
    lead_date date NOT NULL CHECK (lead_date BETWEEN '2000-01-01' AND '2100-12-31'),
    cost numeric(12,2) CHECK (cost <> 'NaN'),
    status text,
    caller_number text,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX elocals_leads_lead_date ON raw.elocals_leads (lead_date);
COMMENT ON TABLE raw.elocals_leads IS 'Leads bought from eLocals, one row each.';
COMMENT ON COLUMN raw.elocals_leads.lead_id IS 'eLocals'' unique id.';
COMMENT ON COLUMN raw.elocals_leads.lead_at IS 'When the lead came.';
COMMENT ON COLUMN raw.elocals_leads.lead_date IS 'Local date of the lead.';
COMMENT ON COLUMN raw.elocals_leads.cost IS 'Price in dollars. Credits come up to 96 hours later, in a later export. Only rows above zero are leads.';
COMMENT ON COLUMN raw.elocals_leads.status IS 'Status as given.';
COMMENT ON COLUMN raw.elocals_leads.caller_number IS 'Caller''s number as given.';
COMMENT ON COLUMN raw.elocals_leads.file_id IS 'raw.source_files entry that last changed the row; NULL for a row written by hand.';
COMMENT ON COLUMN raw.elocals_leads.record_no IS 'Record in that file.';
COMMENT ON COLUMN raw.elocals_leads.updated_at IS 'When the row was last changed by a load.';

CREATE TABLE raw.proref_leads (
    lead_id text PRIMARY KEY CHECK (lead_id <> ''),
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
COMMENT ON COLUMN raw.proref_leads.lead_id IS 'Pro Referral''s lead id.';
COMMENT ON COLUMN raw.proref_leads.lead_at IS 'When the lead came.';
COMMENT ON COLUMN raw.proref_leads.lead_date IS 'Local date of the lead.';
COMMENT ON COLUMN raw.proref_leads.current_status IS 'Status as given. Every lead counts that is not Passed; a blank status counts.';
COMMENT ON COLUMN raw.proref_leads.category IS 'Category as given.';
COMMENT ON COLUMN raw.proref_leads.zip IS 'Postal code as given.';
COMMENT ON COLUMN raw.proref_leads.file_id IS 'raw.source_files entry that last changed the row; NULL for a row written by hand.';
COMMENT ON COLUMN raw.proref_leads.record_no IS 'Record in that file.';
COMMENT ON COLUMN raw.proref_leads.updated_at IS 'When the row was last changed by a load.';

CREATE TABLE raw.google_spend (
    month date NOT NULL CHECK (month BETWEEN '2000-01-01' AND '2100-12-01' AND extract(day FROM month) = 1),
    campaign text NOT NULL DEFAULT 'all',
    amount numeric(12,2) NOT NULL CHECK (amount <> 'NaN'),
    covered_to date NOT NULL,
    whole boolean NOT NULL DEFAULT true,
    file_id bigint,
    record_no int,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT google_spend_pkey PRIMARY KEY (month, campaign),
    CONSTRAINT google_spend_covered CHECK (covered_to >= month AND covered_to < month + interval '1 month')
);
COMMENT ON TABLE raw.google_spend IS 'Google Ads spend by month and campaign. The newest file that covers a month replaces all of that month''s rows.';
COMMENT ON COLUMN raw.google_spend.month IS 'First day of the month.';
COMMENT ON COLUMN raw.google_spend.campaign IS 'Campaign; all where the file has none.';
COMMENT ON COLUMN raw.google_spend.amount IS 'Dollars spent in the month up to covered_to.';
COMMENT ON COLUMN raw.google_spend.covered_to IS 'Last day that the amount covers.';
COMMENT ON COLUMN raw.google_spend.whole IS 'false: the file has quarantined records of this month, so the row counts only until a file has the month whole.';
COMMENT ON COLUMN raw.google_spend.file_id IS 'raw.source_files entry that last changed the row; NULL for a row written by hand.';
COMMENT ON COLUMN raw.google_spend.record_no IS 'First record of the month and campaign in that file.';
COMMENT ON COLUMN raw.google_spend.updated_at IS 'When the row was last changed by a load.';
