-- Erasure: takes a customer's personal data out of the rows and out of the audit trail, and leaves the business as it
-- was. What is personal is listed once, here: docs/decisions/erasure.md.
-- No search_path: the helpers here are like those of 0005.

-- Every text, jsonb and inet column of the CRM stands in this list; a test fails for one that is missing.
CREATE FUNCTION crm_private.data_classes() RETURNS TABLE (tab text, col text, class text)
LANGUAGE sql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT v.tab, v.col, v.class
    FROM (VALUES
        -- null: erased to NULL; mark: to [erased], because the column is required; key: likewise, with the row's id,
        -- because it is unique; words: to [erased], unless the RPCs wrote it; payload: by the classes of the row that
        -- it shows; keep: not personal, or needed
        ('customers', 'full_name', 'mark'),
        ('customers', 'phone', 'null'),
        ('customers', 'email', 'null'),
        ('customers', 'country', 'keep'),
        ('customers', 'billing_address', 'null'),
        ('customers', 'delivery_details', 'null'),
        ('customer_contacts', 'kind', 'keep'),
        ('customer_contacts', 'key', 'key'),
        ('leads', 'source', 'keep'),
        ('leads', 'contact', 'null'),
        ('leads', 'notes', 'null'),
        ('leads', 'customer_comment', 'null'),
        ('leads', 'bike_url', 'keep'),
        ('leads', 'bike_snapshot', 'keep'),
        -- items, amounts and references stay, so that a call that is repeated finds its first result
        ('orders', 'order_code', 'keep'),
        ('orders', 'order_code_key', 'keep'),
        ('orders', 'items', 'keep'),
        ('orders', 'bike_url', 'keep'),
        ('orders', 'bike_snapshot', 'keep'),
        ('payments', 'external_reference', 'keep'),
        ('payments', 'reference_key', 'keep'),
        ('documents', 'file_url', 'mark'),
        ('tasks', 'title', 'mark'),
        ('tasks', 'description', 'null'),
        ('tasks', 'status', 'keep'),
        ('shipments', 'tracking_number', 'keep'),
        ('shipments', 'status', 'keep'),
        ('shipments', 'ruspost_status', 'null'),
        ('order_status_events', 'old_status', 'keep'),
        ('order_status_events', 'new_status', 'keep'),
        ('order_status_events', 'reason', 'words'),
        ('order_status_events', 'notes', 'null'),
        ('audit_log', 'action', 'keep'),
        ('audit_log', 'entity', 'keep'),
        ('audit_log', 'payload', 'payload'),
        ('audit_log', 'session_user', 'keep'),
        ('audit_log', 'client_address', 'null'),
        ('audit_log', 'application_name', 'keep'),
        ('audit_positions', 'salt', 'null'),
        ('audit_positions', 'payload_hash', 'keep'),
        ('audit_seals', 'previous_hash', 'keep'),
        ('audit_seals', 'hash', 'keep'),
        ('idempotency_keys', 'function', 'keep'),
        ('idempotency_keys', 'key', 'keep'),
        ('idempotency_keys', 'salt', 'null'),
        ('idempotency_keys', 'request_hash', 'null'),
        -- people of the business, not customers
        ('users', 'name', 'keep'),
        ('users', 'email', 'keep'),
        ('user_identity_map', 'provider', 'keep'),
        ('user_identity_map', 'external_id', 'keep'),
        ('alembic_version', 'version_num', 'keep'),
        ('migration_files', 'version', 'keep'),
        ('migration_files', 'name', 'keep'),
        ('migration_files', 'sha256', 'keep')
    ) AS v (tab, col, class)
$$;
COMMENT ON FUNCTION crm_private.data_classes IS
    'What an erasure does to each column that could hold personal data; a test fails for a column that is missing.';

CREATE FUNCTION crm_private.erased_value(p_class text, p_value jsonb, p_id text DEFAULT NULL) RETURNS jsonb
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN p_value IS NULL OR p_value = 'null' OR p_class = 'keep' THEN p_value
        WHEN p_class = 'null' THEN 'null'::jsonb
        WHEN p_class = 'words'
            AND p_value #>> '{}' IN ('created', 'payment', 'total_changed', 'adopted') THEN p_value
        WHEN p_class = 'key' THEN to_jsonb('[erased] ' || p_id)
        ELSE '"[erased]"'::jsonb
    END
$$;
COMMENT ON FUNCTION crm_private.erased_value IS
    'Returns what an erasure leaves of a value of this class, in the row with this id.';

CREATE FUNCTION crm_private.erased_row(p_table text, p_row jsonb) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_class record;
    v_payload jsonb;
BEGIN
    FOR v_class IN
        SELECT c.col, c.class FROM crm_private.data_classes() c
        WHERE c.tab = p_table AND c.class NOT IN ('keep', 'payload') AND p_row ? c.col
    LOOP
        p_row := jsonb_set(
            p_row, ARRAY[v_class.col], crm_private.erased_value(v_class.class, p_row -> v_class.col, p_row ->> 'id')
        );
    END LOOP;
    IF p_table = 'audit_log' THEN
        v_payload := p_row -> 'payload';
        IF v_payload ? 'row' THEN
            v_payload := jsonb_set(v_payload, '{row}', crm_private.erased_row(p_row ->> 'entity', v_payload -> 'row'));
        END IF;
        -- a row of the audit log before adoption, whatever its columns are
        IF v_payload ? 'adopted' THEN
            v_payload := jsonb_set(v_payload, '{adopted}', '"[erased]"');
        END IF;
        FOR v_class IN
            SELECT c.col FROM crm_private.data_classes() c
            WHERE c.tab = p_row ->> 'entity' AND c.class <> 'keep' AND v_payload -> 'changes' ? c.col
        LOOP
            -- that it changed may be known, but not from what to what
            v_payload := jsonb_set(v_payload, ARRAY['changes', v_class.col], '{"old": null, "new": null}');
        END LOOP;
        FOR v_class IN
            SELECT * FROM (VALUES ('notes', 'null'), ('reason', 'words')) AS k (col, class) WHERE v_payload ? k.col
        LOOP
            v_payload := jsonb_set(
                v_payload, ARRAY[v_class.col], crm_private.erased_value(v_class.class, v_payload -> v_class.col)
            );
        END LOOP;
        p_row := jsonb_set(p_row, '{payload}', v_payload);
    END IF;
    RETURN p_row;
END
$$;
COMMENT ON FUNCTION crm_private.erased_row IS
    'Returns a row without its personal data. The guards of append-only tables allow no other change than this one.';

CREATE FUNCTION crm_private.erase_rows(p_table text, p_column text, p_ids uuid[]) RETURNS SETOF jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_columns text;
    v_values text;
BEGIN
    SELECT string_agg(quote_ident(c.col), ', '), string_agg('e.' || quote_ident(c.col), ', ')
    INTO v_columns, v_values
    FROM crm_private.data_classes() c
    WHERE c.tab = p_table AND c.class <> 'keep';
    RETURN QUERY EXECUTE format(
        'UPDATE public.%1$I t
        SET (%2$s) = (SELECT %3$s FROM jsonb_populate_record(t, crm_private.erased_row(%1$L, to_jsonb(t))) e)
        WHERE t.%4$I = ANY ($1) AND crm_private.erased_row(%1$L, to_jsonb(t)) <> to_jsonb(t)
        RETURNING to_jsonb(t)',
        p_table, v_columns, v_values, p_column
    ) USING p_ids;
END
$$;
COMMENT ON FUNCTION crm_private.erase_rows IS
    'Erases the personal data in the rows of a table whose column has one of these ids; returns the rows that changed.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.erase_customer_safe(p_customer_id uuid, p_user_id uuid, p_reason text) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_reason text := crm_private.required_text('p_reason', p_reason);
    v_main uuid;
    v_customers uuid[];
    v_contacts uuid[];
    v_leads uuid[];
    v_orders uuid[];
    v_related jsonb;
    v_row jsonb;
    v_rows bigint := 0;
    v_audit_rows jsonb;
BEGIN
    PERFORM crm_private.required_id('p_customer_id', p_customer_id);
    LOOP
        -- all who turned out to be this person
        SELECT coalesce(c.merged_into, c.id) INTO v_main FROM public.customers c WHERE c.id = p_customer_id;
        IF NOT FOUND THEN
            PERFORM crm_private.not_found('customers', 'p_customer_id', p_customer_id);
        END IF;
        PERFORM crm_private.require_admin(v_actor, 'erasing a customer');
        v_customers := ARRAY(
            SELECT c.id FROM public.customers c WHERE v_main IN (c.id, c.merged_into) ORDER BY c.id
        );
        v_contacts := ARRAY(
            SELECT k.id FROM public.customer_contacts k WHERE k.customer_id = ANY (v_customers)
            ORDER BY k.kind COLLATE "C", k.key COLLATE "C"
        );
        -- Whoever writes to a customer, or creates something for one, holds a lock on one of these rows. What joins the
        -- customer before they are locked isn't: then they are released, and all is done again.
        BEGIN
            PERFORM FROM public.customer_contacts k WHERE k.id = ANY (v_contacts)
            ORDER BY array_position(v_contacts, k.id) FOR UPDATE;
            PERFORM FROM public.customers c WHERE c.id = ANY (v_customers) ORDER BY c.id FOR UPDATE;
            EXIT WHEN NOT EXISTS (
                SELECT FROM public.customers c WHERE c.id = v_main AND c.merged_into IS NOT NULL
                UNION ALL
                SELECT FROM public.customers c WHERE c.merged_into = v_main AND c.id <> ALL (v_customers)
                UNION ALL
                SELECT FROM public.customer_contacts k
                WHERE k.customer_id = ANY (v_customers) AND k.id <> ALL (v_contacts)
            );
            RAISE EXCEPTION USING ERRCODE = 'CR001';
        EXCEPTION WHEN SQLSTATE 'CR001' THEN
            NULL;
        END;
    END LOOP;
    -- Orders before leads, as calls do that create something for both; no other call has both while the customer is
    -- locked. An order's lock keeps everybody from writing to it, a lead's must keep foreign keys away, too.
    v_leads := ARRAY(SELECT l.id FROM public.leads l WHERE l.customer_id = ANY (v_customers) ORDER BY l.id);
    SELECT coalesce(array_agg(o.id), '{}') INTO v_orders
    FROM (
        SELECT o.id FROM public.orders o
        WHERE o.customer_id = ANY (v_customers) OR o.lead_id = ANY (v_leads)
        ORDER BY o.id FOR NO KEY UPDATE
    ) o;
    PERFORM FROM public.leads l WHERE l.id = ANY (v_leads) ORDER BY l.id FOR UPDATE;
    -- every audit row gets the hash of what it says now, before that is erased
    PERFORM crm_private.number_changes(p_search_all => true);
    SELECT jsonb_object_agg(r.entity, r.ids) INTO v_related
    FROM (
        SELECT 'customers' AS entity, to_jsonb(v_customers) AS ids
        UNION ALL SELECT 'customer_contacts', to_jsonb(v_contacts)
        UNION ALL SELECT 'leads', to_jsonb(v_leads)
        UNION ALL SELECT 'orders', to_jsonb(v_orders)
        UNION ALL SELECT 'payments', jsonb_agg(p.id) FROM public.payments p WHERE p.order_id = ANY (v_orders)
        UNION ALL SELECT 'shipments', jsonb_agg(s.id) FROM public.shipments s WHERE s.order_id = ANY (v_orders)
        UNION ALL SELECT 'documents', jsonb_agg(d.id) FROM public.documents d
            WHERE d.order_id = ANY (v_orders) OR d.lead_id = ANY (v_leads)
        UNION ALL SELECT 'tasks', jsonb_agg(t.id) FROM public.tasks t
            WHERE t.order_id = ANY (v_orders) OR t.lead_id = ANY (v_leads)
    ) r
    WHERE jsonb_typeof(r.ids) = 'array';
    -- without its hash, a key answers every repeated call with the first result
    UPDATE crm_private.idempotency_keys k SET salt = NULL, request_hash = NULL
    WHERE k.salt IS NOT NULL AND k.result_id IN (
        SELECT i::uuid FROM jsonb_each(v_related) r CROSS JOIN jsonb_array_elements_text(r.value) i
    );
    FOR v_row IN
        SELECT e.row || jsonb_build_object('entity', r.entity)
        FROM jsonb_each(v_related) AS r (entity, ids)
        CROSS JOIN LATERAL crm_private.erase_rows(
            r.entity, 'id', ARRAY(SELECT i::uuid FROM jsonb_array_elements_text(r.ids) i)
        ) AS e (row)
        WHERE r.entity NOT IN ('orders', 'payments')
    LOOP
        v_rows := v_rows + 1;
        IF v_row ->> 'entity' <> 'customers' THEN
            PERFORM crm_private.audit(
                v_actor.id, 'erased', v_row ->> 'entity', (v_row ->> 'id')::uuid, v_row - 'entity'
            );
        END IF;
    END LOOP;
    SELECT v_rows + count(*) INTO v_rows FROM crm_private.erase_rows('order_status_events', 'order_id', v_orders);

    WITH emptied AS (
        UPDATE public.audit_log a SET
            payload = crm_private.erased_row('audit_log', to_jsonb(a)) -> 'payload', client_address = NULL
        FROM public.audit_positions p
        -- before adoption, entities may have had other names
        WHERE p.audit_id = a.id AND (v_related -> a.entity ? a.entity_id::text OR a.action = 'adopted')
            AND a.action <> 'erased'
            AND a.entity_id = ANY (ARRAY(
                SELECT i::uuid FROM jsonb_each(v_related) r CROSS JOIN jsonb_array_elements_text(r.value) i
            ))
            AND crm_private.erased_row('audit_log', to_jsonb(a)) <> to_jsonb(a)
        RETURNING a.id, a.payload
    ), unsalted AS (
        UPDATE public.audit_positions p SET salt = NULL FROM emptied e
        WHERE p.audit_id = e.id AND p.salt IS NOT NULL
    )
    SELECT jsonb_object_agg(e.id, encode(sha256(convert_to(e.payload::text, 'UTF8')), 'hex')) INTO v_audit_rows
    FROM emptied e;

    -- each of them, because in an older backup they are not merged yet
    INSERT INTO public.customer_erasures (customer_id, actor_id) SELECT c, v_actor.id FROM unnest(v_customers) c;
    FOR v_row IN SELECT to_jsonb(c) FROM public.customers c WHERE c.id = ANY (v_customers) ORDER BY c.id LOOP
        PERFORM crm_private.audit(
            v_actor.id, 'erased', 'customers', (v_row ->> 'id')::uuid, v_row,
            jsonb_build_object('reason', v_reason, 'audit_rows', CASE
                WHEN (v_row ->> 'id')::uuid = v_main THEN coalesce(v_audit_rows, '{}'::jsonb)
                ELSE '{}'::jsonb
            END)
        );
    END LOOP;
    RETURN jsonb_build_object(
        'id', v_main, 'erased_rows', v_rows,
        'erased_audit_rows', (SELECT count(*) FROM jsonb_object_keys(v_audit_rows))
    );
END
$$;
COMMENT ON FUNCTION public.erase_customer_safe IS
    E'Erases a customer''s personal data: name, contacts, addresses, notes, comments, tasks, file addresses, '
    'carriers'' answers, from the rows and from the audit trail.\n'
    'Rules: all customers who were merged with this one are erased, too; admins only, with a reason, which stays and '
    'must not name the person; items, amounts, references, statuses and times stay; changed rows, except events, '
    'appear in the change feed as erased, and audit_rows of the customer''s change names the older changes that were '
    'emptied, by their audit_id; an idempotency key loses its arguments'' hash, and answers any arguments with the '
    'first result from then on; repeating an erasure erases what was written since; the register of erasures is '
    'published with the seals, so that it can be repeated after a restore.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 customer or reason missing; PT404 no such customer.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
