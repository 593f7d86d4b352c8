-- What applications read besides the tables: views and searches, with the indexes that they need. They run with the
-- caller's rights, so a caller sees no row that the tables would not show.

SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '30s';

-- indexes ------------------------------------------------------------------------------------------------------
-- Prefixes are compared in the order of code points, which every collation's index can be asked for.

CREATE INDEX idx_customers_name ON public.customers USING btree ((lower(full_name)) COLLATE "C");
CREATE INDEX idx_orders_code_prefix ON public.orders USING btree ((lower(order_code)) COLLATE "C");
CREATE INDEX idx_orders_assigned_manager ON public.orders USING btree (assigned_manager, status);
CREATE INDEX idx_leads_assigned_to ON public.leads USING btree (assigned_to, status);
CREATE INDEX idx_tasks_assigned_to ON public.tasks USING btree (assigned_to, due_at) WHERE completed IS NOT TRUE;
CREATE INDEX idx_tasks_lead ON public.tasks USING btree (lead_id);
CREATE INDEX idx_documents_lead ON public.documents USING btree (lead_id);

-- views --------------------------------------------------------------------------------------------------------

CREATE VIEW public.order_balance WITH (security_invoker = true) AS
SELECT
    o.id AS order_id, o.order_code AS order_number, o.customer_id, o.status, o.total_amount, o.currency,
    m.client_paid, m.refunded, m.refunds_open, m.client_paid - m.refunded AS held,
    greatest(o.total_amount - m.client_paid + m.refunded, 0) AS due,
    greatest(m.client_paid - m.refunded - o.total_amount, 0) AS overpaid,
    m.paid_out, m.payouts_open
FROM public.orders o
CROSS JOIN LATERAL (
    SELECT
        coalesce(sum(p.amount) FILTER (WHERE p.what = 'client' AND p.done), 0) AS client_paid,
        coalesce(sum(p.amount) FILTER (WHERE p.what = 'refund' AND p.done), 0) AS refunded,
        coalesce(sum(p.amount) FILTER (WHERE p.what = 'refund' AND NOT p.done), 0) AS refunds_open,
        coalesce(sum(p.amount) FILTER (WHERE p.what = 'payout' AND p.done), 0) AS paid_out,
        coalesce(sum(p.amount) FILTER (WHERE p.what = 'payout' AND NOT p.done), 0) AS payouts_open
    FROM (
        -- as crm_private.client_money and payouts count: a reversal takes away, and so does money back from a supplier
        SELECT
            CASE WHEN (b.direction = 'incoming') = (b.role = 'client_payment') THEN b.amount ELSE -b.amount END
                AS amount,
            b.status = 'completed' AS done,
            CASE
                WHEN b.role = 'client_payment' AND (b.direction = 'incoming') = (b.reverses IS NULL) THEN 'client'
                WHEN b.role = 'refund' AND (b.direction = 'outgoing') = (b.reverses IS NULL) THEN 'refund'
                WHEN b.role = 'supplier_payment' AND (b.direction = 'outgoing' OR b.status = 'completed') THEN 'payout'
                WHEN b.role IN ('shipping_payment', 'commission')
                    AND (b.direction = 'outgoing') = (b.reverses IS NULL) THEN 'payout'
            END AS what
        FROM public.payments b
        WHERE b.order_id = o.id AND b.currency = o.currency AND b.amount <> 'NaN'
            AND b.status IN ('planned', 'pending', 'completed')
    ) p
) m;
COMMENT ON VIEW public.order_balance IS
    'The money of every order, in its currency: what the client paid, got back and still owes, and what was paid out.';

CREATE VIEW public.order_timeline WITH (security_invoker = true) AS
SELECT
    e.order_id, e.created_at AS at, 'status' AS kind, e.id, e.changed_by AS actor_id, e.new_status AS what,
    jsonb_build_object('seq', e.seq, 'old_status', e.old_status, 'reason', e.reason, 'notes', e.notes) AS details
FROM public.order_status_events e
UNION ALL
SELECT
    p.order_id, p.created_at, 'payment', p.id, p.created_by, p.role::text,
    jsonb_build_object(
        'direction', p.direction, 'method', p.method, 'amount', p.amount, 'currency', p.currency, 'status', p.status,
        'external_reference', p.external_reference, 'related_payment_id', p.related_payment_id
    )
FROM public.payments p
UNION ALL
SELECT
    d.order_id, d.uploaded_at, 'document', d.id, d.uploaded_by, d.type::text,
    jsonb_build_object(
        'storage_url', d.file_url, 'replaces', d.replaces,
        'replaced_by', (SELECT n.id FROM public.documents n WHERE n.replaces = d.id), 'withdrawn_at', d.withdrawn_at
    )
FROM public.documents d
UNION ALL
SELECT
    t.order_id, t.created_at, 'task', t.id, t.created_by, t.title,
    jsonb_build_object(
        'description', t.description, 'completed', coalesce(t.completed, false), 'assignee_id', t.assigned_to,
        'due_at', t.due_at
    )
FROM public.tasks t
UNION ALL
SELECT
    s.order_id, s.created_at, 'shipment', s.id, s.created_by, s.status,
    jsonb_build_object(
        'carrier', s.provider, 'tracking_number', s.tracking_number,
        'estimated_delivery_date', s.estimated_delivery_date, 'client_received', s.client_received
    )
FROM public.shipments s;
COMMENT ON VIEW public.order_timeline IS
    'What happened to an order, in one list: status changes, payments, documents, tasks and shipments. Ask for one '
    'order_id and order by at.';

CREATE VIEW public.customer_overview WITH (security_invoker = true) AS
SELECT
    c.id AS customer_id, c.full_name, c.phone, c.email, c.preferred_channel, c.country, c.created_at,
    c.merged_into, l.leads, l.open_leads, o.orders, o.open_orders, o.last_order_at, m.money_held
FROM public.customers c
CROSS JOIN LATERAL (
    SELECT count(*) AS leads, count(*) FILTER (WHERE x.status IN ('new', 'in_progress')) AS open_leads
    FROM public.leads x
    WHERE x.customer_id = c.id
) l
CROSS JOIN LATERAL (
    SELECT
        count(*) AS orders, count(*) FILTER (WHERE x.status NOT IN ('closed', 'cancelled')) AS open_orders,
        max(x.created_at) AS last_order_at
    FROM public.orders x
    WHERE x.customer_id = c.id
) o
CROSS JOIN LATERAL (
    SELECT coalesce(jsonb_object_agg(h.currency, h.held), '{}') AS money_held
    FROM (
        SELECT p.currency, sum(CASE p.direction WHEN 'incoming' THEN p.amount ELSE -p.amount END) AS held
        FROM public.orders x
        JOIN public.payments p ON p.order_id = x.id AND p.currency = x.currency
        WHERE x.customer_id = c.id AND p.status = 'completed' AND p.role IN ('client_payment', 'refund')
            AND p.amount <> 'NaN' AND ((p.direction = 'incoming') = (p.role = 'client_payment')) = (p.reverses IS NULL)
        GROUP BY p.currency
    ) h
) m;
COMMENT ON VIEW public.customer_overview IS
    'Every customer with their leads and orders, and the client money that their orders hold, by currency.';

CREATE VIEW public.open_tasks WITH (security_invoker = true) AS
SELECT
    t.id AS task_id, t.title, t.description, t.due_at, t.due_at < now() AS overdue, t.assigned_to AS assignee_id,
    a.name AS assignee_name, t.created_by, t.created_at, t.order_id, o.order_code AS order_number, t.lead_id,
    coalesce(o.customer_id, l.customer_id) AS customer_id
FROM public.tasks t
LEFT JOIN public.users a ON a.id = t.assigned_to
LEFT JOIN public.orders o ON o.id = t.order_id
LEFT JOIN public.leads l ON l.id = t.lead_id
WHERE t.completed IS NOT TRUE;
COMMENT ON VIEW public.open_tasks IS
    'Tasks that are not done, with their assignee, order and customer. Order by due_at.';

-- searches -----------------------------------------------------------------------------------------------------
-- In SQL that PostgreSQL inlines into the caller's query, and parses here (BEGIN ATOMIC), so that no search_path
-- changes what they mean. U+10FFFF comes after every letter that may follow a prefix.

CREATE FUNCTION public.find_customers_by_phone(p_phone text) RETURNS TABLE (
    customer_id uuid, full_name text, phone text, email text, country text, created_at timestamptz
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT c.id, c.full_name, c.phone, c.email, c.country, c.created_at
    FROM public.customers c
    WHERE c.merged_into IS NULL AND c.id IN (
        SELECT k.customer_id
        FROM public.customer_contacts k
        WHERE k.kind = 'phone' AND k.key = crm_private.phone_digits(p_phone)
        UNION
        -- adopted customers may share a number, which belongs to the oldest
        SELECT coalesce(d.merged_into, d.id)
        FROM public.customers d
        WHERE crm_private.phone_digits(d.phone) = crm_private.phone_digits(p_phone)
    )
    ORDER BY c.created_at, c.id
    LIMIT 50;
END;
COMMENT ON FUNCTION public.find_customers_by_phone IS
    'Finds customers by a phone number that they have or had, however it is written; at most 50.';

CREATE FUNCTION public.find_customers_by_email(p_email text) RETURNS TABLE (
    customer_id uuid, full_name text, phone text, email text, country text, created_at timestamptz
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT c.id, c.full_name, c.phone, c.email, c.country, c.created_at
    FROM public.customers c
    WHERE c.merged_into IS NULL AND c.id IN (
        SELECT k.customer_id
        FROM public.customer_contacts k
        WHERE k.kind = 'email' AND k.key = crm_private.folded_email(p_email)
        UNION
        SELECT coalesce(d.merged_into, d.id)
        FROM public.customers d
        WHERE crm_private.folded_email(d.email) = crm_private.folded_email(p_email)
    )
    ORDER BY c.created_at, c.id
    LIMIT 50;
END;
COMMENT ON FUNCTION public.find_customers_by_email IS
    'Finds customers by an e-mail address that they have or had, regardless of case; at most 50.';

CREATE FUNCTION public.find_customers_by_name(p_prefix text) RETURNS TABLE (
    customer_id uuid, full_name text, phone text, email text, country text, created_at timestamptz
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT c.id, c.full_name, c.phone, c.email, c.country, c.created_at
    FROM public.customers c
    WHERE lower(c.full_name) COLLATE "C" >= lower(p_prefix)
        AND lower(c.full_name) COLLATE "C" < (lower(p_prefix) || chr(1114111))
        AND c.merged_into IS NULL
    ORDER BY lower(c.full_name) COLLATE "C"
    LIMIT 50;
END;
COMMENT ON FUNCTION public.find_customers_by_name IS
    'Finds customers whose name begins with this text, regardless of case; at most 50, in the order of their names.';

CREATE FUNCTION public.find_orders_by_code(p_prefix text) RETURNS TABLE (
    order_id uuid, order_number text, customer_id uuid, status text, total_amount numeric, currency text,
    created_at timestamptz
)
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT o.id, o.order_code, o.customer_id, o.status::text, o.total_amount, o.currency::text, o.created_at
    FROM public.orders o
    WHERE lower(o.order_code) COLLATE "C" >= lower(p_prefix)
        AND lower(o.order_code) COLLATE "C" < (lower(p_prefix) || chr(1114111))
    ORDER BY lower(o.order_code) COLLATE "C"
    LIMIT 50;
END;
COMMENT ON FUNCTION public.find_orders_by_code IS
    'Finds orders whose number begins with this text, regardless of case; at most 50, in the order of their numbers.';

-- privileges: default privileges may have given more, role by role -----------------------------------------------

DO $$
DECLARE
    v_read record;
    v_grantee text;
BEGIN
    FOR v_read IN
        SELECT format('TABLE %s', c.oid::regclass) AS name, c.relowner AS owner, c.relacl AS acl, 'SELECT' AS privilege
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'public'::regnamespace
            AND c.relname IN ('order_balance', 'order_timeline', 'customer_overview', 'open_tasks')
        UNION ALL
        SELECT
            format('FUNCTION %s', p.oid::regprocedure), p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)),
            'EXECUTE'
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname IN (
            'find_customers_by_phone', 'find_customers_by_email', 'find_customers_by_name', 'find_orders_by_code'
        )
    LOOP
        FOR v_grantee IN
            SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
            FROM aclexplode(v_read.acl) a
            WHERE a.grantee <> v_read.owner
        LOOP
            EXECUTE format('REVOKE ALL ON %s FROM %s', v_read.name, v_grantee);
        END LOOP;
        EXECUTE format('GRANT %s ON %s TO crm_app', v_read.privilege, v_read.name);
    END LOOP;
END
$$;

-- what the searches call with the caller's rights
GRANT EXECUTE ON FUNCTION crm_private.phone_digits, crm_private.folded_email TO crm_app;

-- words --------------------------------------------------------------------------------------------------------
-- The requirements use other words than the tables, for the same things; docs/crm-rpc.md lists them from here.

COMMENT ON COLUMN public.orders.order_code IS 'Order number, as told to the client (order_number in the requirements).';
COMMENT ON COLUMN public.order_status_events.changed_by IS
    'User who moved the order (actor_id in the requirements).';
COMMENT ON COLUMN public.documents.type IS 'What the document is (document_type in the requirements).';
COMMENT ON COLUMN public.documents.file_url IS 'Where the file is stored (storage_url in the requirements).';
COMMENT ON COLUMN public.tasks.assigned_to IS 'User who is to do it (assignee_id in the requirements).';
COMMENT ON COLUMN public.shipments.provider IS 'Who carries it (carrier in the requirements).';
COMMENT ON COLUMN public.leads.customer_comment IS
    'What the client wrote (description of a lead in the requirements).';
