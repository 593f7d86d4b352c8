-- Expand: what the requirements name and the DDL lacks. Rows stay as they are; 0050 fills adopted ones, together with
-- the guards, so that rows written in between are not missed.

-- Long tables take their time, but a waiting ALTER TABLE blocks everyone else: better to fail and be run again.
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '30s';

-- The migrator has made the schema already, for its version table; psql (migrate --sql) has not. Whoever else owns it
-- could replace the functions in it.
DO $$
BEGIN
    IF to_regnamespace('crm_private') IS NULL THEN
        CREATE SCHEMA crm_private;
    ELSIF to_regnamespace('crm_private') NOT IN (SELECT oid FROM pg_namespace WHERE nspowner = CURRENT_USER::regrole)
    THEN
        RAISE EXCEPTION 'the schema crm_private belongs to another role than %, which could replace what is in it',
            CURRENT_USER
            USING HINT = format('As an administrator: ALTER SCHEMA crm_private OWNER TO %I;', CURRENT_USER);
    END IF;
END
$$;

-- helpers that indexes need -------------------------------------------------------------------------
-- No function has a backslash in a plain literal: its meaning depends on standard_conforming_strings, which any calling
-- session may set.

-- No search_path: PostgreSQL inlines those without a SET clause, which name everything with its schema instead.

CREATE FUNCTION crm_private.blank_characters() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT E'\u0001-\u0020\u007F-\u00A0\u00AD\u034F\u061C\u115F-\u1160\u1680\u17B4-\u17B5\u180B-\u180F\u2000-\u200F'
        OPERATOR(pg_catalog.||) E'\u2028-\u202F\u205F-\u206F\u2800\u3000\u3164\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFFB'
        OPERATOR(pg_catalog.||) E'\U0001BCA0-\U0001BCA3\U0001D159\U0001D173-\U0001D17A\U000E0000-\U000E0FFF'
$$;
COMMENT ON FUNCTION crm_private.blank_characters IS
    'White space, control and invisible characters, as ranges of code points for a bracket expression: the one list of '
    'them. Classes such as [[:space:]] differ between locales.';

CREATE FUNCTION crm_private.trimmed(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.substring(
        p_text,
        pg_catalog.replace('[^<>](?:.*[^<>])?', '<>', crm_private.blank_characters())
    )
$$;
COMMENT ON FUNCTION crm_private.trimmed IS
    'The text without white space and invisible characters at its ends; NULL if nothing is left.';

CREATE FUNCTION crm_private.is_own_key(p_reference text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT p_reference OPERATOR(pg_catalog.~) '^[!-~]+$'
        AND pg_catalog.length(p_reference) OPERATOR(pg_catalog.<=) 255
$$;
COMMENT ON FUNCTION crm_private.is_own_key IS
    'Tells whether a reference is at most 255 visible ASCII characters, as almost all are: it is accepted and compared '
    'as it is. A shortcut, which takes a third of the time of the rule.';

CREATE FUNCTION crm_private.reference_key(p_reference text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE
        WHEN crm_private.is_own_key(p_reference) THEN p_reference
        ELSE pg_catalog.substring(
            pg_catalog.normalize(p_reference, 'NFKC'),
            pg_catalog.replace('^[<>]*([^<>]+(?: [^<>]+)*)[<>]*$', '<>', crm_private.blank_characters())
        )
    END
$$;
COMMENT ON FUNCTION crm_private.reference_key IS
    'The form in which references are compared: NFKC, trimmed. NULL if nothing is left, or if there is white space '
    '(except single spaces) or an invisible character inside, which two equal looking references could differ by.';

CREATE FUNCTION crm_private.ascii_folded(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.translate(p_text, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz')
$$;
COMMENT ON FUNCTION crm_private.ascii_folded IS
    'The text with A to Z in lower case, and nothing else changed: other letters fold differently between locales.';

CREATE FUNCTION crm_private.order_code_key(p_order_code text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT crm_private.ascii_folded(crm_private.reference_key(p_order_code)) $$;
COMMENT ON FUNCTION crm_private.order_code_key IS
    'The form in which order numbers are compared: as references, and regardless of the case of A to Z.';

CREATE FUNCTION crm_private.phone_digits(p_phone text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT nullif(
        CASE
            WHEN n.number ~ '^([+]|00)' THEN regexp_replace(replace(n.number, '+', ''), '^00', '')
            ELSE regexp_replace(replace(n.number, '+', ''), '^8(?=[0-9]{10}$)', '7')
        END,
        ''
    )
    FROM (
        SELECT regexp_replace(
            regexp_replace(p_phone, '([дД][оО][бБ]|[eE][xX][tT]).*', ''), '[^0-9+]', '', 'g'
        ) AS number
    ) n
$$;
COMMENT ON FUNCTION crm_private.phone_digits IS
    'The digits by which phones are compared. A number that starts with + or 00 is international, and the digits after '
    'that count as they are; without them, 8 and ten digits is a Russian number: 7XXXXXXXXXX. An extension after доб. '
    'or ext is left out.';

-- As the owner, because its body calls trimmed by name, and crm_app, whose searches call it, may not use this schema.
CREATE FUNCTION crm_private.folded_email(p_email text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ SELECT lower(crm_private.trimmed(p_email)) $$;
COMMENT ON FUNCTION crm_private.folded_email IS 'The form in which e-mail addresses are compared: trimmed, lower case.';

CREATE FUNCTION crm_private.system_user_id() RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT '00000000-0000-0000-0000-000000000001'::uuid $$;
COMMENT ON FUNCTION crm_private.system_user_id IS 'The inactive user that acts when no person does.';

CREATE SEQUENCE crm_private.order_code_seq;

-- columns -----------------------------------------------------------------------------------------------------

ALTER TABLE public.users ADD COLUMN IF NOT EXISTS email text;
ALTER TABLE public.customers
    ADD COLUMN IF NOT EXISTS billing_address jsonb,
    ADD COLUMN IF NOT EXISTS delivery_details jsonb,
    ADD COLUMN IF NOT EXISTS merged_into uuid;
ALTER TABLE public.leads
    ADD COLUMN IF NOT EXISTS updated_at timestamp with time zone,
    ADD COLUMN IF NOT EXISTS assigned_to uuid,
    ADD COLUMN IF NOT EXISTS contact text,
    ADD COLUMN IF NOT EXISTS notes text;
ALTER TABLE public.orders
    ADD COLUMN IF NOT EXISTS items jsonb,
    ADD COLUMN IF NOT EXISTS total_amount numeric(12, 2),
    ADD COLUMN IF NOT EXISTS currency public.currency_enum,
    ADD COLUMN IF NOT EXISTS created_by uuid,
    ADD COLUMN IF NOT EXISTS updated_by uuid,
    ADD COLUMN IF NOT EXISTS updated_at timestamp with time zone,
    ADD COLUMN IF NOT EXISTS order_code_key text;
ALTER TABLE public.payments
    ADD COLUMN IF NOT EXISTS created_by uuid,
    ADD COLUMN IF NOT EXISTS updated_at timestamp with time zone,
    ADD COLUMN IF NOT EXISTS reference_key text,
    ADD COLUMN IF NOT EXISTS reverses uuid,
    ADD COLUMN IF NOT EXISTS rebooks uuid;
ALTER TABLE public.documents
    ADD COLUMN IF NOT EXISTS uploaded_by uuid,
    ADD COLUMN IF NOT EXISTS lead_id uuid,
    ADD COLUMN IF NOT EXISTS replaces uuid,
    ADD COLUMN IF NOT EXISTS withdrawn_at timestamp with time zone,
    ADD COLUMN IF NOT EXISTS created_at timestamp with time zone GENERATED ALWAYS AS (uploaded_at) STORED;
ALTER TABLE public.tasks
    ADD COLUMN IF NOT EXISTS created_by uuid,
    ADD COLUMN IF NOT EXISTS lead_id uuid,
    ADD COLUMN IF NOT EXISTS status text
        GENERATED ALWAYS AS (CASE WHEN completed THEN 'done' ELSE 'open' END) STORED;
ALTER TABLE public.shipments
    ADD COLUMN IF NOT EXISTS status text,
    ADD COLUMN IF NOT EXISTS created_by uuid;
ALTER TABLE public.order_status_events
    ADD COLUMN IF NOT EXISTS seq integer,
    ADD COLUMN IF NOT EXISTS reason text,
    ADD COLUMN IF NOT EXISTS notes text,
    ADD COLUMN IF NOT EXISTS transaction_id xid8;

-- Counted by a trigger (0050), so that a caller can tell that nobody changed a row since it was read.
DO $$
DECLARE
    v_table text;
BEGIN
    FOREACH v_table IN ARRAY ARRAY[
        'users', 'customers', 'leads', 'orders', 'payments', 'documents', 'tasks', 'shipments'
    ] LOOP
        EXECUTE format('ALTER TABLE public.%I ADD COLUMN IF NOT EXISTS version integer NOT NULL DEFAULT 1', v_table);
        EXECUTE format(
            'COMMENT ON COLUMN public.%I.version IS %L', v_table,
            '1, and one more with every change of the row; p_expected_version is compared with it.'
        );
    END LOOP;
END
$$;

-- set afterwards, so that existing rows stay NULL
ALTER TABLE public.orders
    ALTER COLUMN status SET DEFAULT 'created'::public.order_status_enum,
    ALTER COLUMN updated_at SET DEFAULT clock_timestamp();
ALTER TABLE public.leads ALTER COLUMN updated_at SET DEFAULT clock_timestamp();
ALTER TABLE public.payments ALTER COLUMN updated_at SET DEFAULT clock_timestamp();
ALTER TABLE public.order_status_events ALTER COLUMN transaction_id SET DEFAULT pg_current_xact_id();

-- The clock and not now(), which is the time when the transaction began: one that stays open could back-date its rows.
ALTER TABLE public.users ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE public.customers ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE public.leads ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE public.orders ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE public.payments ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE public.documents ALTER COLUMN uploaded_at SET DEFAULT clock_timestamp();
ALTER TABLE public.tasks ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE public.shipments ALTER COLUMN created_at SET DEFAULT clock_timestamp();
ALTER TABLE public.order_status_events ALTER COLUMN created_at SET DEFAULT clock_timestamp();

COMMENT ON COLUMN public.orders.order_code IS 'Order number, as told to the client.';
COMMENT ON COLUMN public.orders.order_code_key IS
    'order_code as order numbers are compared (crm_private.order_code_key), unique; NULL on adopted orders whose '
    'number an older order has, or that no call would accept.';
COMMENT ON COLUMN public.orders.created_by IS 'User who created the order; NULL only on adopted rows.';
COMMENT ON COLUMN public.customers.merged_into IS
    'The customer that this one turned out to be (merge_customers_safe), who is never merged itself; NULL otherwise.';
COMMENT ON COLUMN public.payments.created_by IS 'User who booked the payment; NULL only on adopted rows.';
COMMENT ON COLUMN public.payments.reference_key IS
    'external_reference as references are compared (crm_private.reference_key), unique forever; NULL on adopted '
    'payments whose reference an older payment has, or that no call would accept.';
COMMENT ON COLUMN public.payments.reverses IS
    'The completed payment that this one takes back: same order, role, method, amount and currency, opposite '
    'direction. Subtracts in every sum.';
COMMENT ON COLUMN public.payments.rebooks IS
    'The reversed payment, booked on the wrong order, that this one books on the right one.';
COMMENT ON COLUMN public.documents.created_at IS 'When the document was attached: uploaded_at.';
COMMENT ON COLUMN public.documents.replaces IS 'The document that this one replaces, which stays as history.';
COMMENT ON COLUMN public.documents.withdrawn_at IS 'When the document was withdrawn; NULL while it counts.';
COMMENT ON COLUMN public.shipments.ruspost_status IS
    'The carrier''s last answer to a tracking request, as it came; ruspost_last_update tells when.';
COMMENT ON COLUMN public.shipments.status IS
    'created, shipped, in_transit, customs, delivered or lost; NULL (unknown) only on adopted rows not yet '
    'received.';
COMMENT ON COLUMN public.order_status_events.seq IS
    '1, 2, 3 … within an order, without gaps; NULL only on adopted events without an order.';
COMMENT ON COLUMN public.order_status_events.transaction_id IS
    'Transaction that wrote the event, the same as that of its audit row; NULL only on adopted events. A trace: '
    'another server counts anew.';

-- new tables --------------------------------------------------------------------------------------------------

CREATE TABLE public.audit_log (
    id bigint GENERATED ALWAYS AS IDENTITY,
    actor_id uuid NULL,
    action text NOT NULL,
    entity text NOT NULL,
    entity_id uuid NULL,
    payload jsonb NOT NULL DEFAULT '{}'::jsonb,
    "session_user" text NOT NULL DEFAULT SESSION_USER,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    client_address inet NULL DEFAULT inet_client_addr(),
    application_name text NULL DEFAULT current_setting('application_name'),
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT audit_log_pkey PRIMARY KEY (id),
    CONSTRAINT audit_log_actor_id_fkey FOREIGN KEY (actor_id) REFERENCES public.users (id)
);
CREATE INDEX idx_audit_log_entity ON public.audit_log USING btree (entity, entity_id);
COMMENT ON TABLE public.audit_log IS
    'Every change of a business row: the acting user (actor_id; NULL if the table owner wrote directly), the action '
    'and the login.';
COMMENT ON COLUMN public.audit_log.entity IS 'Name of the table that the row is in.';
COMMENT ON COLUMN public.audit_log.payload IS
    'row: the row after the change; plus what the action adds: changes, old and new status, reason …';
COMMENT ON COLUMN public.audit_log.transaction_id IS
    'Transaction that wrote the row. A trace: another server counts anew, so that nothing is ordered by it.';
COMMENT ON COLUMN public.audit_log.created_at IS
    'When the row was written, by the clock; not when its transaction began or ended.';

COMMENT ON COLUMN public.audit_log.client_address IS
    'Network address of the session that wrote the row, usually that of the application''s server; NULL over a local '
    'socket, and after an erasure.';
COMMENT ON COLUMN public.audit_log.application_name IS 'What the session called itself.';

CREATE TABLE public.audit_positions (
    position bigint NOT NULL,
    audit_id bigint NOT NULL,
    salt bytea NULL,
    payload_hash bytea NOT NULL,
    CONSTRAINT audit_positions_pkey PRIMARY KEY (position),
    CONSTRAINT audit_positions_audit_id_key UNIQUE (audit_id),
    CONSTRAINT audit_positions_audit_id_fkey FOREIGN KEY (audit_id) REFERENCES public.audit_log (id),
    CONSTRAINT audit_positions_position_check CHECK (position > 0),
    CONSTRAINT audit_positions_hash_check CHECK (octet_length(payload_hash) = 32),
    CONSTRAINT audit_positions_salt_check CHECK (octet_length(salt) = 32)
);
COMMENT ON TABLE public.audit_positions IS
    'The order of the audit rows, without gaps: crm_private.number_changes gives each committed row the next position. '
    'Seals and the change feed follow it.';
COMMENT ON COLUMN public.audit_positions.salt IS
    'Random bytes that keep a hash from being guessed; erased together with the personal data of the row.';
COMMENT ON COLUMN public.audit_positions.payload_hash IS
    'sha256 of the salt and of the row''s payload and client address, as they were when the position was given.';

-- One row: what number_changes need not search again, and its lock.
CREATE TABLE crm_private.audit_numbering (
    only_row boolean NOT NULL DEFAULT true,
    floor_id bigint NOT NULL DEFAULT 0,
    next_floor_id bigint NULL,
    next_floor_transaction_id xid8 NULL,
    CONSTRAINT audit_numbering_pkey PRIMARY KEY (only_row),
    CONSTRAINT audit_numbering_only_row_check CHECK (only_row)
);
INSERT INTO crm_private.audit_numbering DEFAULT VALUES;
COMMENT ON TABLE crm_private.audit_numbering IS
    'One row, which number_changes locks: audit rows up to floor_id have positions. next_floor_id becomes the floor '
    'once every transaction older than next_floor_transaction_id has ended.';

CREATE TABLE public.audit_seals (
    seq bigint NOT NULL,
    last_position bigint NOT NULL,
    row_count bigint NOT NULL,
    previous_hash text NOT NULL,
    hash text NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT audit_seals_pkey PRIMARY KEY (seq),
    CONSTRAINT audit_seals_last_position_key UNIQUE (last_position),
    CONSTRAINT audit_seals_seq_check CHECK (seq > 0),
    CONSTRAINT audit_seals_row_count_check CHECK (row_count > 0),
    CONSTRAINT audit_seals_hash_check CHECK (hash ~ '^[0-9a-f]{64}$' AND previous_hash ~ '^[0-9a-f]{64}$')
);
COMMENT ON TABLE public.audit_seals IS
    'Hash chain over audit_log: each seal covers the positions since the previous one. Sealed rows cannot change '
    'undetected.';

CREATE TABLE public.customer_erasures (
    id bigint GENERATED ALWAYS AS IDENTITY,
    customer_id uuid NOT NULL,
    actor_id uuid NOT NULL,
    transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id(),
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT customer_erasures_pkey PRIMARY KEY (id),
    CONSTRAINT customer_erasures_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES public.customers (id),
    CONSTRAINT customer_erasures_actor_id_fkey FOREIGN KEY (actor_id) REFERENCES public.users (id)
);
CREATE INDEX idx_customer_erasures_customer ON public.customer_erasures USING btree (customer_id);
COMMENT ON TABLE public.customer_erasures IS
    'The customers whose personal data was erased, without any of it. Published with the seals: after a restore from '
    'an older backup the same erasures run again.';

CREATE TABLE public.user_identity_map (
    provider text NOT NULL,
    external_id text NOT NULL,
    crm_user_id uuid NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT user_identity_map_pkey PRIMARY KEY (provider, external_id),
    CONSTRAINT user_identity_map_crm_user_id_fkey FOREIGN KEY (crm_user_id) REFERENCES public.users (id)
);
COMMENT ON TABLE public.user_identity_map IS 'Maps an identity provider''s accounts to CRM users.';

CREATE TABLE public.customer_contacts (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    kind text NOT NULL,
    key text NOT NULL,
    customer_id uuid NOT NULL,
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT customer_contacts_pkey PRIMARY KEY (id),
    CONSTRAINT customer_contacts_kind_key_key UNIQUE (kind, key),
    CONSTRAINT customer_contacts_kind_check CHECK (kind IN ('phone', 'email', 'telegram', 'whatsapp')),
    CONSTRAINT customer_contacts_key_check CHECK (key <> ''),
    -- deferred, because contacts are claimed before their customer is created
    CONSTRAINT customer_contacts_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES public.customers (id)
        DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX idx_customer_contacts_customer ON public.customer_contacts USING btree (customer_id);
COMMENT ON TABLE public.customer_contacts IS
    'Which customer a phone number, e-mail address or messenger name belongs to: a customer who writes again is found '
    'by it. Each belongs to one customer; calls that bring the same one wait for each other at its unique key.';
COMMENT ON COLUMN public.customer_contacts.key IS
    'The form in which contacts are compared: phone_digits, folded_email, or the messenger name in lower case without '
    '@.';

CREATE TABLE public.order_status_transitions (
    from_status public.order_status_enum NOT NULL,
    to_status public.order_status_enum NOT NULL,
    required_role public.user_role_enum NOT NULL,
    CONSTRAINT order_status_transitions_pkey PRIMARY KEY (from_status, to_status),
    CONSTRAINT order_status_transitions_check CHECK (from_status <> to_status AND to_status <> 'paid')
);
COMMENT ON TABLE public.order_status_transitions IS
    'The transitions that people may make; manager means every active user. Only payments lead to paid. Changed by '
    'migrations.';

INSERT INTO public.order_status_transitions (from_status, to_status, required_role) VALUES
    ('created', 'awaiting_payment', 'manager'),
    ('created', 'cancelled', 'manager'),
    ('awaiting_payment', 'cancelled', 'manager'),
    ('paid', 'in_delivery', 'manager'),
    ('paid', 'cancelled', 'admin'),
    ('in_delivery', 'delivered', 'manager'),
    ('in_delivery', 'cancelled', 'admin'),
    ('delivered', 'closed', 'admin');

CREATE TABLE public.payout_limits (
    currency public.currency_enum NOT NULL,
    manager_limit numeric(12, 2) NOT NULL,
    CONSTRAINT payout_limits_pkey PRIMARY KEY (currency),
    CONSTRAINT payout_limits_check CHECK (manager_limit >= 0 AND manager_limit <> 'NaN')
);
COMMENT ON TABLE public.payout_limits IS
    'How much of an order may be paid out without an admin in a currency that is not the order''s. 0 also for a '
    'currency without a row. Changed by migrations; a payout''s audit row keeps the limit that it was booked under.';

INSERT INTO public.payout_limits (currency, manager_limit) VALUES ('EUR', 0), ('USD', 0), ('RUB', 0);

CREATE TABLE crm_private.idempotency_keys (
    function text NOT NULL,
    key text NOT NULL,
    salt bytea NULL,
    request_hash bytea NULL,
    result_id uuid NULL,
    created_at timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (function, key)
);
COMMENT ON TABLE crm_private.idempotency_keys IS
    'The keys by which callers repeat a call safely: the hash of the first call''s arguments (salted, so that nobody '
    'can guess them) and the row it made. Kept forever.';

INSERT INTO public.users (id, name, role, active) VALUES (crm_private.system_user_id(), 'system', 'manager', false)
ON CONFLICT (id) DO NOTHING;

-- constraints and indexes -------------------------------------------------------------------------------------

CREATE UNIQUE INDEX users_email_folded_key ON public.users USING btree (crm_private.folded_email(email));
CREATE INDEX idx_customers_phone_digits ON public.customers USING btree (crm_private.phone_digits(phone));
CREATE INDEX idx_customers_email ON public.customers USING btree (crm_private.folded_email(email));
CREATE INDEX idx_customers_merged_into ON public.customers USING btree (merged_into);
ALTER TABLE public.customers ADD CONSTRAINT customers_merged_into_check CHECK (merged_into <> id);
CREATE INDEX idx_leads_customer ON public.leads USING btree (customer_id);
CREATE INDEX idx_orders_customer ON public.orders USING btree (customer_id);
CREATE INDEX idx_orders_lead ON public.orders USING btree (lead_id);
ALTER TABLE public.orders ADD CONSTRAINT orders_order_code_key_key UNIQUE (order_code_key);
ALTER TABLE public.payments ADD CONSTRAINT payments_reference_key_key UNIQUE (reference_key);
-- without the payments that have none, who would all wait for the same page
CREATE UNIQUE INDEX payments_reverses_key ON public.payments USING btree (reverses) WHERE reverses IS NOT NULL;
CREATE UNIQUE INDEX payments_rebooks_key ON public.payments USING btree (rebooks) WHERE rebooks IS NOT NULL;
CREATE INDEX idx_payments_related ON public.payments USING btree (related_payment_id)
WHERE related_payment_id IS NOT NULL;
ALTER TABLE public.order_status_events ADD CONSTRAINT order_status_events_order_seq_key UNIQUE (order_id, seq);
ALTER TABLE public.order_status_events ADD CONSTRAINT order_status_events_seq_check CHECK (seq > 0);
ALTER TABLE public.documents ADD CONSTRAINT documents_replaces_key UNIQUE (replaces);
ALTER TABLE public.shipments ADD CONSTRAINT shipments_status_check
    CHECK (status IN ('created', 'shipped', 'in_transit', 'customs', 'delivered', 'lost'));

-- A foreign-key action would change rows behind the RPCs' backs; NO ACTION refuses the delete instead.
DO $$
DECLARE
    v_key record;
BEGIN
    FOR v_key IN
        SELECT * FROM (VALUES
            ('customers', 'merged_into', 'customers'),
            ('leads', 'customer_id', 'customers'),
            ('leads', 'assigned_to', 'users'),
            ('orders', 'assigned_manager', 'users'),
            ('orders', 'customer_id', 'customers'),
            ('orders', 'lead_id', 'leads'),
            ('orders', 'created_by', 'users'),
            ('orders', 'updated_by', 'users'),
            ('payments', 'order_id', 'orders'),
            ('payments', 'related_payment_id', 'payments'),
            ('payments', 'reverses', 'payments'),
            ('payments', 'rebooks', 'payments'),
            ('payments', 'created_by', 'users'),
            ('documents', 'order_id', 'orders'),
            ('documents', 'lead_id', 'leads'),
            ('documents', 'uploaded_by', 'users'),
            ('documents', 'replaces', 'documents'),
            ('tasks', 'order_id', 'orders'),
            ('tasks', 'lead_id', 'leads'),
            ('tasks', 'assigned_to', 'users'),
            ('tasks', 'created_by', 'users'),
            ('shipments', 'order_id', 'orders'),
            ('shipments', 'created_by', 'users'),
            ('order_status_events', 'order_id', 'orders'),
            ('order_status_events', 'changed_by', 'users')
        ) AS keys (tab, col, target)
    LOOP
        EXECUTE format(
            'ALTER TABLE public.%1$I DROP CONSTRAINT IF EXISTS %2$I,
            ADD CONSTRAINT %2$I FOREIGN KEY (%3$I) REFERENCES public.%4$I (id)',
            v_key.tab, v_key.tab || '_' || v_key.col || '_fkey', v_key.col, v_key.target
        );
    END LOOP;
END
$$;
