-- Guards: triggers that refuse every way of writing except the RPCs, privileges and policies as a second line of
-- defense, and an assertion that all of it is in place: docs/decisions/guards-by-role.md.
-- If a later migration must change guarded rows: ALTER TABLE … DISABLE TRIGGER guard_rows; update;
-- ALTER TABLE … ENABLE ALWAYS TRIGGER guard_rows; in one transaction.

SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '30s';
-- row security would silently skip rows of the updates below; off makes that an error
SET LOCAL row_security = off;

-- From here on no one else writes, so that every row is either filled here or comes through the RPCs.
LOCK TABLE public.users, public.customers, public.leads, public.orders, public.payments, public.documents, public.tasks,
    public.shipments, public.order_status_events IN SHARE ROW EXCLUSIVE MODE;

-- fills of adopted rows ---------------------------------------------------------------------------------------
-- History is not rewritten: created_by and the like stay NULL. In an empty database all of this touches only the
-- system user's audit row.

-- an order priced NaN gets no total here; update_order_safe can give it one later
UPDATE public.orders SET total_amount = final_price_eur, currency = 'EUR'
WHERE total_amount IS NULL AND currency IS NULL AND final_price_eur <> 'NaN';

UPDATE public.shipments SET status = 'delivered' WHERE client_received AND status IS NULL;
ALTER TABLE public.shipments ALTER COLUMN status SET DEFAULT 'created';

-- the oldest payment with a reference gets it as its key; later ones get none
UPDATE public.payments p SET reference_key = r.reference
FROM (
    SELECT
        id, crm_private.reference_key(external_reference) AS reference,
        row_number() OVER (
            PARTITION BY crm_private.reference_key(external_reference)
            ORDER BY reference_key NULLS LAST, created_at, id
        ) AS place
    FROM public.payments
) r
WHERE r.id = p.id AND r.place = 1 AND p.reference_key IS NULL AND r.reference IS NOT NULL;

-- likewise order numbers, which differ by more than the case of their letters
UPDATE public.orders o SET order_code_key = r.key
FROM (
    SELECT
        id, crm_private.order_code_key(order_code) AS key,
        row_number() OVER (
            PARTITION BY crm_private.order_code_key(order_code) ORDER BY order_code_key NULLS LAST, created_at, id
        ) AS place
    FROM public.orders
) r
WHERE r.id = o.id AND r.place = 1 AND o.order_code_key IS NULL AND r.key IS NOT NULL;

CREATE TEMPORARY TABLE adopted_orders ON COMMIT DROP AS
SELECT o.id, o.status::text AS status FROM public.orders o
WHERE NOT EXISTS (SELECT FROM public.order_status_events e WHERE e.order_id = o.id AND e.seq IS NOT NULL);

-- what `--map-status` said; the old status stays in the event's notes
DO $$
BEGIN
    IF to_regclass('crm_private.adopted_statuses') IS NOT NULL THEN
        UPDATE public.orders o SET status = m.status::public.order_status_enum
        FROM crm_private.adopted_statuses m, adopted_orders a
        WHERE m.older = o.status::text AND a.id = o.id;
        DROP TABLE crm_private.adopted_statuses;
    END IF;
END
$$;

UPDATE public.order_status_events e SET seq = n.place
FROM (
    SELECT id, row_number() OVER (PARTITION BY order_id ORDER BY created_at, id) AS place
    FROM public.order_status_events WHERE order_id IN (SELECT a.id FROM adopted_orders a)
) n
WHERE n.id = e.id;

-- one time for all that adoption writes
INSERT INTO public.order_status_events (order_id, old_status, new_status, changed_by, seq, reason, notes, created_at)
SELECT o.id, l.new_status, o.status::text, crm_private.system_user_id(), coalesce(l.seq, 0) + 1, 'adopted',
    CASE WHEN a.status <> o.status::text THEN 'was ' || a.status END, now()
FROM public.orders o JOIN adopted_orders a ON a.id = o.id
LEFT JOIN LATERAL (
    SELECT e.new_status, e.seq FROM public.order_status_events e WHERE e.order_id = o.id ORDER BY e.seq DESC LIMIT 1
) l ON true;

-- of customers who share a contact, the oldest has it
INSERT INTO public.customer_contacts (kind, key, customer_id)
SELECT DISTINCT ON (k.kind, k.key) k.kind, k.key, c.id
FROM public.customers c CROSS JOIN crm_private.contacts(c.phone, crm_private.folded_email(c.email)) k
ORDER BY k.kind, k.key, c.created_at, c.id;
-- a table with foreign keys still to check gets no triggers
SET CONSTRAINTS public.customer_contacts_customer_id_fkey IMMEDIATE;

-- Rows of an older audit_log and user_identity_map, which adoption set aside, as they were: in the payload, under
-- `adopted`. Whatever their columns are; what is no user or no id here stays in the payload alone.
DO $$
DECLARE
    v_row record;
    v_map public.user_identity_map;
BEGIN
    IF to_regclass('crm_private.adopted_audit_log') IS NOT NULL THEN
        INSERT INTO public.audit_log (actor_id, action, entity, entity_id, payload, created_at)
        SELECT
            coalesce(u.id, crm_private.system_user_id()), 'adopted', coalesce(r.row ->> 'entity', 'audit_log'),
            CASE WHEN pg_input_is_valid(r.row ->> 'entity_id', 'uuid') THEN (r.row ->> 'entity_id')::uuid END,
            jsonb_build_object('adopted', r.row), coalesce((r.row ->> 'created_at')::timestamptz, now())
        FROM (SELECT to_jsonb(t) AS row FROM crm_private.adopted_audit_log t) r
        LEFT JOIN public.users u ON u.id::text = r.row ->> 'actor_id'
        ORDER BY (r.row ->> 'created_at')::timestamptz, r.row ->> 'id';
        DROP TABLE crm_private.adopted_audit_log;
    END IF;
    IF to_regclass('crm_private.adopted_user_identity_map') IS NOT NULL THEN
        FOR v_row IN
            SELECT
                r.row, u.id AS user_id, coalesce(crm_private.trimmed(r.row ->> 'provider'), 'adopted') AS provider,
                crm_private.trimmed(
                    coalesce(r.row ->> 'external_id', r.row ->> 'identity_id', r.row ->> 'auth_user_id')
                ) AS external_id
            FROM (SELECT to_jsonb(t) AS row FROM crm_private.adopted_user_identity_map t) r
            LEFT JOIN public.users u ON u.id::text = coalesce(r.row ->> 'crm_user_id', r.row ->> 'user_id')
            ORDER BY r.row ->> 'created_at', r.row::text
        LOOP
            v_map := NULL;
            IF v_row.user_id IS NOT NULL AND v_row.external_id IS NOT NULL THEN
                INSERT INTO public.user_identity_map (provider, external_id, crm_user_id, created_at)
                VALUES (v_row.provider, v_row.external_id, v_row.user_id, now())
                ON CONFLICT DO NOTHING RETURNING * INTO v_map;
            END IF;
            INSERT INTO public.audit_log (actor_id, action, entity, entity_id, payload, created_at)
            VALUES (
                crm_private.system_user_id(),
                CASE WHEN v_map.crm_user_id IS NULL THEN 'adopted' ELSE 'adopt' END,
                'user_identity_map', v_row.user_id,
                jsonb_build_object('adopted', v_row.row) || CASE
                    WHEN v_map.crm_user_id IS NULL THEN '{}' ELSE jsonb_build_object('row', to_jsonb(v_map))
                END,
                now()
            );
        END LOOP;
        DROP TABLE crm_private.adopted_user_identity_map;
    END IF;
END
$$;

-- the audit trail starts with every existing row as it is after the fills
INSERT INTO public.audit_log (actor_id, action, entity, entity_id, payload, created_at)
SELECT
    crm_private.system_user_id(), 'adopt', a.entity, a.id,
    jsonb_build_object('row', a.row) || coalesce((
        SELECT jsonb_build_object('notes', e.notes)
        FROM public.order_status_events e
        WHERE a.entity = 'orders' AND e.order_id = a.id AND e.reason = 'adopted' AND e.notes IS NOT NULL
    ), '{}'),
    now()
FROM (
    SELECT 'users' AS entity, t.id, t.created_at, to_jsonb(t) AS row FROM public.users t
    UNION ALL SELECT 'customers', t.id, t.created_at, to_jsonb(t) FROM public.customers t
    UNION ALL SELECT 'customer_contacts', t.id, t.created_at, to_jsonb(t) FROM public.customer_contacts t
    UNION ALL SELECT 'leads', t.id, t.created_at, to_jsonb(t) FROM public.leads t
    UNION ALL SELECT 'orders', t.id, t.created_at, to_jsonb(t) FROM public.orders t
    UNION ALL SELECT 'payments', t.id, t.created_at, to_jsonb(t) FROM public.payments t
    UNION ALL SELECT 'documents', t.id, t.uploaded_at, to_jsonb(t) FROM public.documents t
    UNION ALL SELECT 'tasks', t.id, t.created_at, to_jsonb(t) FROM public.tasks t
    UNION ALL SELECT 'shipments', t.id, t.created_at, to_jsonb(t) FROM public.shipments t
) a
WHERE NOT EXISTS (
    SELECT FROM public.audit_log l WHERE l.entity = a.entity AND l.entity_id = a.id AND l.action <> 'adopted'
)
ORDER BY a.created_at, a.entity, a.id;

-- guard functions: with the caller's rights, so that current_user is the role that really writes ---------------

CREATE FUNCTION crm_private.guard_rows() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_mode text := TG_ARGV[0];
    v_allowed boolean;
BEGIN
    v_allowed := CASE v_mode
        WHEN 'owner_writes' THEN TG_OP <> 'DELETE' AND (
            CURRENT_USER = 'crm_rpc'
            OR CURRENT_USER = (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = TG_RELID)
        )
        WHEN 'record' THEN TG_OP <> 'DELETE'
            AND CURRENT_USER = (SELECT pg_get_userbyid(c.relowner) FROM pg_class c WHERE c.oid = TG_RELID)
        ELSE false
    END;
    -- The one exception to append-only: personal data may go, and nothing else with it. In a statement of its own,
    -- because only crm_rpc may call erased_row.
    IF v_mode = 'append_only' AND TG_OP = 'UPDATE' AND CURRENT_USER = 'crm_rpc' THEN
        v_allowed := to_jsonb(NEW) <> to_jsonb(OLD)
            AND to_jsonb(NEW) = crm_private.erased_row(TG_TABLE_NAME, to_jsonb(OLD));
    END IF;
    IF NOT v_allowed THEN
        RAISE EXCEPTION USING ERRCODE = '42501',
            MESSAGE = format(
                '%s on %s is refused: only %s change its rows', TG_OP, TG_TABLE_NAME,
                CASE v_mode WHEN 'record' THEN 'migrations' ELSE 'the RPCs' END
            ),
            DETAIL = jsonb_build_object(
                'rule', 'guard', 'table', TG_TABLE_NAME, 'action', TG_OP, 'found', CURRENT_USER,
                'accepted', CASE v_mode
                    WHEN 'owner_writes' THEN 'INSERT and UPDATE by the table owner, or the RPCs'
                    WHEN 'append_only' THEN 'INSERT by the RPCs, and the erasure of personal data'
                    WHEN 'record' THEN 'INSERT and UPDATE by the table owner, that is by migrations'
                    ELSE 'the RPCs'
                END
            )::text,
            HINT = CASE v_mode
                WHEN 'record' THEN 'Run crm-analytics migrate crm as the tables'' owner.'
                ELSE 'Call the RPC for this change, e.g. advance_order_status_safe for orders.status.'
            END;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION crm_private.guard_rows IS
    'Trigger: refuses (42501) INSERT, UPDATE and DELETE. Mode rpc: every one, because the trigger''s WHEN clause lets '
    'crm_rpc pass; append_only: likewise, except an UPDATE by crm_rpc that erases personal data; owner_writes: lets '
    'crm_rpc and the owner insert and update; record: only the owner, no DELETE.';

CREATE FUNCTION crm_private.guard_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = '42501',
        MESSAGE = format('TRUNCATE on %s is refused: the CRM deletes nothing', TG_TABLE_NAME),
        DETAIL = jsonb_build_object(
            'rule', 'guard', 'table', TG_TABLE_NAME, 'action', TG_OP, 'found', CURRENT_USER, 'accepted', NULL
        )::text,
        HINT = 'Cancel or close rows through the RPCs instead.';
END
$$;
COMMENT ON FUNCTION crm_private.guard_truncate IS 'Trigger: refuses (42501) TRUNCATE, by anyone.';

CREATE FUNCTION crm_private.require_actor() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_column text := TG_ARGV[0];
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF to_jsonb(NEW) ->> v_column IS NULL THEN
            PERFORM crm_private.creator_missing(TG_TABLE_NAME, v_column);
        END IF;
    ELSIF to_jsonb(NEW) ->> v_column IS DISTINCT FROM to_jsonb(OLD) ->> v_column THEN
        RAISE EXCEPTION USING ERRCODE = '23514',
            MESSAGE = format('%s.%s never changes', TG_TABLE_NAME, v_column),
            DETAIL = jsonb_build_object(
                'rule', 'actor', 'table', TG_TABLE_NAME, 'field', v_column, 'found', to_jsonb(NEW) -> v_column,
                'accepted', to_jsonb(OLD) -> v_column
            )::text,
            HINT = 'Leave the column as it is: it names the creator of the row.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION crm_private.require_actor IS
    'Trigger: every new row names its creator (in the column given as argument), who never changes. A NOT VALID '
    'check would refuse every later update of adopted rows. Of a new payment, payments_ledger asks for it.';

CREATE FUNCTION crm_private.wait_for_calls() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The update itself takes a weaker lock, which crm_private.actor doesn't wait for.
    PERFORM FROM public.users u WHERE u.id = OLD.id FOR UPDATE;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION crm_private.wait_for_calls IS
    'Trigger: whoever changes a user''s activity or role, the table owner included, waits for the calls that the user '
    'has begun, and later ones wait for the change.';

CREATE FUNCTION crm_private.payments_ledger() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- here and not in require_actor, because calling another trigger would be a fortieth of a payment's cost
        IF NEW.created_by IS NULL THEN
            PERFORM crm_private.creator_missing(TG_TABLE_NAME, 'created_by');
        END IF;
        IF NEW.order_id IS NULL OR NOT (NEW.amount > 0 AND NEW.amount <> 'NaN')
            OR NEW.reference_key IS DISTINCT FROM crm_private.reference_key(NEW.external_reference)
            OR (NEW.reference_key IS NULL AND crm_private.trimmed(NEW.external_reference) IS NOT NULL)
        THEN
            RAISE EXCEPTION USING ERRCODE = '23514',
                MESSAGE = 'a payment needs an order, a positive amount, and as reference_key its comparable reference',
                DETAIL = jsonb_build_object('rule', 'ledger', 'table', 'payments', 'found', to_jsonb(NEW))::text,
                HINT = 'Book it with record_generic_payment_safe.';
        END IF;
        -- asked first, because PostgreSQL starts a query for a condition with EXISTS even when the rest of it is false
        IF NEW.reverses IS NULL AND NEW.rebooks IS NULL THEN
            RETURN NEW;
        END IF;
        IF NEW.reverses IS NOT NULL AND NOT EXISTS (
            SELECT FROM public.payments p
            WHERE p.id = NEW.reverses AND p.reverses IS NULL AND p.status = 'completed' AND NEW.status = 'completed'
                AND NEW.direction <> p.direction
                AND (p.order_id, p.role, p.method, p.amount, p.currency)
                = (NEW.order_id, NEW.role, NEW.method, NEW.amount, NEW.currency)
        ) THEN
            RAISE EXCEPTION USING ERRCODE = '23514',
                MESSAGE = 'a reversal mirrors a completed payment that is not a reversal itself',
                DETAIL = jsonb_build_object('rule', 'ledger', 'table', 'payments', 'found', to_jsonb(NEW))::text,
                HINT = 'Reverse the payment with reverse_payment_safe.';
        END IF;
        IF NEW.rebooks IS NOT NULL AND NOT EXISTS (
            SELECT FROM public.payments p JOIN public.payments r ON r.reverses = p.id
            WHERE p.id = NEW.rebooks AND p.order_id <> NEW.order_id AND NEW.status = 'completed'
                AND (p.direction, p.role, p.method, p.amount, p.currency)
                = (NEW.direction, NEW.role, NEW.method, NEW.amount, NEW.currency)
        ) THEN
            RAISE EXCEPTION USING ERRCODE = '23514',
                MESSAGE = 'only a reversed payment is booked again, with the same facts, on another order',
                DETAIL = jsonb_build_object('rule', 'ledger', 'table', 'payments', 'found', to_jsonb(NEW))::text,
                HINT = 'Reverse the payment with reverse_payment_safe and p_rebook_order_id.';
        END IF;
        RETURN NEW;
    END IF;
    IF (
        NEW.id, NEW.order_id, NEW.direction, NEW.role, NEW.method, NEW.amount, NEW.currency, NEW.related_payment_id,
        NEW.created_at, NEW.reverses, NEW.rebooks
    ) IS NOT DISTINCT FROM (
        OLD.id, OLD.order_id, OLD.direction, OLD.role, OLD.method, OLD.amount, OLD.currency, OLD.related_payment_id,
        OLD.created_at, OLD.reverses, OLD.rebooks
    ) THEN
        IF OLD.status IN ('planned', 'pending') AND (
            (NEW.external_reference, NEW.reference_key)
            IS NOT DISTINCT FROM (OLD.external_reference, OLD.reference_key)
            OR (
                crm_private.trimmed(OLD.external_reference) IS NULL
                AND NEW.reference_key IS NOT DISTINCT FROM crm_private.reference_key(NEW.external_reference)
                AND (NEW.reference_key IS NOT NULL OR crm_private.trimmed(NEW.external_reference) IS NULL)
            )
        ) THEN
            RETURN NEW;
        END IF;
        -- a reversed payment gives its reference to the payment on the right order
        IF OLD.reference_key IS NOT NULL AND NEW.reference_key IS NULL AND NEW.status = OLD.status
            AND NEW.external_reference IS NOT DISTINCT FROM OLD.external_reference
            AND EXISTS (SELECT FROM public.payments r WHERE r.reverses = OLD.id)
        THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = '23514',
        MESSAGE = 'only an open status and a missing reference of a booked payment can change',
        DETAIL = jsonb_build_object('rule', 'ledger', 'table', 'payments', 'id', OLD.id)::text,
        HINT = 'Correct it with another payment, a refund or reverse_payment_safe.';
END
$$;
COMMENT ON FUNCTION crm_private.payments_ledger IS
    'Trigger: payments are a ledger, for crm_rpc too. A new one is complete and positive and names its creator, and a '
    'reversal mirrors its payment; later only an open status and a missing reference change, and a reversed payment '
    'may lose its reference_key.';

CREATE FUNCTION crm_private.order_numbers() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF coalesce(NEW.order_code_key <> crm_private.order_code_key(NEW.order_code), true) THEN
            RAISE EXCEPTION USING ERRCODE = '23514',
                MESSAGE = 'an order needs an order number, and its comparable form as order_code_key',
                DETAIL = jsonb_build_object('rule', 'order_number', 'table', 'orders', 'found', to_jsonb(NEW))::text,
                HINT = 'Create it with create_order_safe.';
        END IF;
    ELSIF (NEW.order_code, NEW.order_code_key) IS DISTINCT FROM (OLD.order_code, OLD.order_code_key) THEN
        RAISE EXCEPTION USING ERRCODE = '23514',
            MESSAGE = 'an order number never changes',
            DETAIL = jsonb_build_object('rule', 'order_number', 'table', 'orders', 'id', OLD.id)::text,
            HINT = 'Leave order_code and order_code_key as they are: the client knows the number.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION crm_private.order_numbers IS
    'Trigger: every new order has a number in comparable form, and numbers never change, for crm_rpc too.';

CREATE FUNCTION crm_private.count_version() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.version := OLD.version + 1;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION crm_private.count_version IS
    'Trigger: every change of a row gives it the next version, whoever makes it and whatever version they write.';

-- Who may write which table, in one place. A table of crm_private that is not named here is the migrations' own record.
CREATE FUNCTION crm_private.guarded_tables() RETURNS TABLE (tab regclass, mode text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT c.oid::regclass, coalesce(g.mode, 'record')
    FROM pg_class c
    LEFT JOIN (VALUES
        ('public.users', 'owner_writes'), ('public.customers', 'owner_writes'),
        ('public.leads', 'rpc'), ('public.orders', 'rpc'), ('public.payments', 'rpc'), ('public.documents', 'rpc'),
        ('public.tasks', 'rpc'), ('public.shipments', 'rpc'), ('public.user_identity_map', 'rpc'),
        ('public.order_status_transitions', 'rpc'), ('public.customer_contacts', 'rpc'),
        ('public.payout_limits', 'rpc'), ('crm_private.idempotency_keys', 'rpc'),
        ('crm_private.audit_numbering', 'rpc'), ('public.order_status_events', 'append_only'),
        ('public.audit_log', 'append_only'), ('public.audit_positions', 'append_only'),
        ('public.audit_seals', 'append_only'), ('public.customer_erasures', 'append_only')
    ) AS g (name, mode) ON to_regclass(g.name) = c.oid
    WHERE c.relkind IN ('r', 'p')
        AND (c.oid IN (SELECT crm_private.tables()) OR c.relnamespace = 'crm_private'::regnamespace)
$$;
COMMENT ON FUNCTION crm_private.guarded_tables IS
    'Every table of the CRM with the mode of its guard (see guard_rows): those in public, and all in crm_private.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

-- triggers -----------------------------------------------------------------------------------------------------

DO $$
DECLARE
    v_trigger record;
BEGIN
    FOR v_trigger IN
        -- What the RPCs write never enters the function. A text, because PostgreSQL reads the condition's constants for
        -- every statement, and a name always has 64 bytes.
        SELECT
            t.tab, 'guard_rows' AS name,
            CASE t.mode WHEN 'append_only' THEN 'BEFORE INSERT' ELSE 'BEFORE INSERT OR UPDATE OR DELETE' END AS event,
            CASE
                WHEN t.mode IN ('rpc', 'append_only') THEN 'ROW WHEN (CURRENT_USER <> ''crm_rpc''::text)'
                ELSE 'ROW'
            END AS level,
            format('guard_rows(%L)', t.mode) AS call
        FROM crm_private.guarded_tables() t
        UNION ALL
        SELECT t.tab, 'guard_changes', 'BEFORE UPDATE OR DELETE', 'ROW', format('guard_rows(%L)', t.mode)
        FROM crm_private.guarded_tables() t
        WHERE t.mode = 'append_only'
        UNION ALL
        SELECT t.tab, 'guard_truncate', 'BEFORE TRUNCATE', 'STATEMENT', 'guard_truncate()'
        FROM crm_private.guarded_tables() t
        UNION ALL
        SELECT
            ('public.' || a.tab)::regclass, 'require_actor',
            CASE a.tab WHEN 'payments' THEN 'BEFORE UPDATE' ELSE 'BEFORE INSERT OR UPDATE' END, 'ROW',
            format('require_actor(%L)', a.col)
        FROM (VALUES
            ('orders', 'created_by'), ('payments', 'created_by'), ('documents', 'uploaded_by'), ('tasks', 'created_by'),
            ('shipments', 'created_by'), ('order_status_events', 'changed_by')
        ) AS a (tab, col)
        UNION ALL
        SELECT ('public.' || v.tab)::regclass, 'row_version', 'BEFORE UPDATE', 'ROW', 'count_version()'
        FROM unnest(ARRAY[
            'users', 'customers', 'leads', 'orders', 'payments', 'documents', 'tasks', 'shipments'
        ]) AS v (tab)
        UNION ALL
        VALUES
            ('public.payments'::regclass, 'payments_ledger', 'BEFORE INSERT OR UPDATE', 'ROW', 'payments_ledger()'),
            ('public.orders', 'order_numbers', 'BEFORE INSERT OR UPDATE', 'ROW', 'order_numbers()'),
            (
                'public.users', 'wait_for_calls', 'BEFORE UPDATE',
                'ROW WHEN (OLD.active IS DISTINCT FROM NEW.active OR OLD.role IS DISTINCT FROM NEW.role)',
                'wait_for_calls()'
            ),
            (
                'public.customers', 'claim_written_contacts', 'AFTER INSERT OR UPDATE',
                'ROW WHEN (CURRENT_USER <> ''crm_rpc''::text)', 'claim_written_contacts()'
            ),
            (
                'public.users', 'audit_owner_write', 'AFTER INSERT OR UPDATE',
                'ROW WHEN (CURRENT_USER <> ''crm_rpc''::text)', 'audit_owner_write()'
            ),
            (
                'public.customers', 'audit_owner_write', 'AFTER INSERT OR UPDATE',
                'ROW WHEN (CURRENT_USER <> ''crm_rpc''::text)', 'audit_owner_write()'
            )
    LOOP
        -- ALWAYS, because session_replication_role = replica skips plain triggers
        EXECUTE format(
            'CREATE TRIGGER %1$I %2$s ON %3$s FOR EACH %4$s EXECUTE FUNCTION crm_private.%5$s;
            ALTER TABLE %3$s ENABLE ALWAYS TRIGGER %1$I',
            v_trigger.name, v_trigger.event, v_trigger.tab, v_trigger.level, v_trigger.call
        );
    END LOOP;
END
$$;

-- privileges and policies --------------------------------------------------------------------------------------

SELECT crm_private.revoke_others(ARRAY['crm_rpc', 'crm_app']);

DO $$
DECLARE
    v_table regclass;
BEGIN
    FOR v_table IN SELECT crm_private.tables() LOOP
        EXECUTE format(
            'ALTER TABLE %1$s ENABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;
            CREATE POLICY crm_rpc_all ON %1$s FOR ALL TO crm_rpc USING (true) WITH CHECK (true);
            CREATE POLICY crm_app_select ON %1$s FOR SELECT TO crm_app USING (true);
            GRANT SELECT ON %1$s TO crm_app',
            v_table
        );
    END LOOP;
    -- a role that gets a broad grant by mistake sees no rows here either
    FOR v_table IN SELECT tab FROM crm_private.guarded_tables() EXCEPT SELECT crm_private.tables() LOOP
        EXECUTE format('ALTER TABLE %1$s ENABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY', v_table);
        IF has_any_column_privilege('crm_rpc', v_table, 'SELECT, INSERT') THEN
            EXECUTE format(
                'CREATE POLICY crm_rpc_all ON %1$s FOR ALL TO crm_rpc USING (true) WITH CHECK (true)', v_table
            );
        END IF;
    END LOOP;
END
$$;

-- assertion, because a REVOKE by a role that is not the grantor succeeds and does nothing ----------------------

DO $$
DECLARE
    v_found text;
BEGIN
    SELECT string_agg(pg_get_userbyid(m.member), ', ') INTO v_found
    FROM pg_catalog.pg_auth_members m
    WHERE m.roleid = 'crm_rpc'::regrole AND (m.inherit_option OR m.set_option);
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'members of crm_rpc bypass every guard: %', v_found
            USING HINT = 'REVOKE crm_rpc FROM each of them.';
    END IF;

    -- who made a role beforehand administers it for good, unless it is a superuser
    SELECT string_agg(format('%s administers %s', r.rolname, m.roleid::regrole), '; ') INTO v_found
    FROM pg_catalog.pg_auth_members m
    JOIN pg_catalog.pg_roles r ON r.oid = m.member
    WHERE m.roleid IN ('crm_rpc'::regrole, 'crm_app'::regrole) AND m.admin_option
        AND NOT r.rolsuper AND r.rolname <> CURRENT_USER;
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'other logins can give the CRM''s roles away: %', v_found
            USING HINT = 'As a superuser: REVOKE the role FROM each of them CASCADE. All CRM databases of a server '
                'have one owner.';
    END IF;

    SELECT string_agg(format('%s may %s %s', r.rolname, x.privilege, t.tab), '; ') INTO v_found
    FROM crm_private.guarded_tables() AS t
    CROSS JOIN pg_catalog.pg_roles r
    CROSS JOIN unnest(ARRAY['INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS x (privilege)
    -- the triggers refuse members of pg_write_all_data
    WHERE NOT r.rolsuper AND r.rolname <> 'crm_rpc' AND NOT pg_has_role(r.oid, crm_private.owner(), 'USAGE')
        AND NOT pg_has_role(r.oid, 'pg_write_all_data', 'USAGE')
        AND (
            has_table_privilege(r.oid, t.tab, x.privilege)
            OR x.privilege IN ('INSERT', 'UPDATE', 'REFERENCES')
            AND has_any_column_privilege(r.oid, t.tab, x.privilege)
        );
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'other roles may still write CRM tables: %', v_found
            USING HINT = 'Another role granted them: revoke them as that role or as a superuser.';
    END IF;

    SELECT string_agg(format('%s may execute %s', r.rolname, p.oid::regprocedure), '; ') INTO v_found
    FROM pg_catalog.pg_proc p, pg_catalog.pg_roles r
    WHERE p.proowner = 'crm_rpc'::regrole AND NOT r.rolsuper AND r.rolname <> 'crm_rpc'
        AND NOT pg_has_role(r.oid, crm_private.owner(), 'USAGE') AND NOT pg_has_role(r.oid, 'crm_app', 'USAGE')
        AND has_function_privilege(r.oid, p.oid, 'EXECUTE');
    IF v_found IS NOT NULL THEN
        RAISE EXCEPTION 'other roles may still execute RPCs: %', v_found
            USING HINT = 'Another role granted it: revoke it as that role or as a superuser.';
    END IF;
END
$$;

-- An adopted database has just got new columns and tables full of rows. An empty one is left alone: cached plans of
-- open sessions would go on treating its tables as empty.
DO $$
BEGIN
    IF EXISTS (SELECT FROM public.orders) THEN
        ANALYZE public.users, public.customers, public.leads, public.orders, public.payments, public.documents,
            public.tasks, public.shipments, public.order_status_events, public.audit_log, public.customer_contacts;
    END IF;
END
$$;
