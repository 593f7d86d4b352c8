-- RPCs for leads and orders: create, move, edit.

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.create_lead_safe(
    p_source text, p_full_name text, p_phone text DEFAULT NULL, p_email text DEFAULT NULL, p_contact text DEFAULT NULL,
    p_country text DEFAULT NULL, p_preferred_channel text DEFAULT NULL, p_bike_url text DEFAULT NULL,
    p_bike_snapshot jsonb DEFAULT NULL, p_customer_comment text DEFAULT NULL,
    p_estimated_budget_eur integer DEFAULT NULL, p_user_id uuid DEFAULT NULL, p_idempotency_key text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id, true);
    v_source text := crm_private.required_text('p_source', p_source);
    v_full_name text := crm_private.required_text('p_full_name', p_full_name);
    v_phone text := crm_private.phone('p_phone', p_phone);
    v_email text := crm_private.email('p_email', p_email);
    v_contact text := crm_private.note('p_contact', p_contact);
    v_country text := crm_private.note('p_country', p_country);
    v_bike_url text := crm_private.note('p_bike_url', p_bike_url);
    v_bike_snapshot jsonb := crm_private.snapshot('p_bike_snapshot', p_bike_snapshot);
    v_comment text := crm_private.note('p_customer_comment', p_customer_comment);
    v_channel text := crm_private.label(
        'p_preferred_channel', p_preferred_channel, 'public.preferred_channel_enum', false
    );
    -- the id of the customer in case that this call creates one
    v_new_id uuid := gen_random_uuid();
    v_told text := concat_ws(', ', v_contact, v_phone, v_email);
    v_found_id uuid;
    v_erased_id uuid;
    v_holder uuid;
    v_kind text;
    v_key text;
    v_new_contacts uuid[];
    v_phone_is_new boolean;
    v_email_is_new boolean;
    v_old public.customers;
    v_idempotency_key text := crm_private.reference('p_idempotency_key', p_idempotency_key);
    v_first uuid;
    v_customer public.customers;
    v_lead public.leads;
BEGIN
    IF v_phone IS NULL AND v_email IS NULL AND v_contact IS NULL THEN
        PERFORM crm_private.invalid('p_contact', NULL, 'given, or else p_phone or p_email');
    END IF;
    IF p_estimated_budget_eur < 0 THEN
        PERFORM crm_private.invalid('p_estimated_budget_eur', p_estimated_budget_eur::text, 'zero or more');
    END IF;
    v_first := crm_private.first_result(
        'create_lead_safe', v_idempotency_key,
        jsonb_build_object(
            'source', v_source, 'full_name', v_full_name, 'phone', v_phone, 'email', v_email, 'contact', v_contact,
            'country', crm_private.trimmed(p_country), 'preferred_channel', v_channel,
            'bike_url', crm_private.trimmed(p_bike_url), 'bike_snapshot', p_bike_snapshot,
            'customer_comment', crm_private.trimmed(p_customer_comment), 'estimated_budget_eur', p_estimated_budget_eur
        )
    );
    IF v_first IS NOT NULL THEN
        SELECT * INTO STRICT v_lead FROM public.leads l WHERE l.id = v_first;
        RETURN jsonb_build_object(
            'id', v_lead.id, 'duplicate', true, 'customer_id', v_lead.customer_id, 'status', v_lead.status
        );
    END IF;
    -- Contacts first, and in a fixed order: of two calls with the same contact one waits for the other, and finds its
    -- customer.
    SET CONSTRAINTS public.customer_contacts_customer_id_fkey DEFERRED;
    LOOP
        v_found_id := NULL;
        FOR v_kind, v_key IN
            SELECT c.kind, c.key FROM crm_private.contacts(v_phone, v_email, v_contact, v_channel) c
        LOOP
            v_holder := crm_private.claim_contact(v_kind, v_key, v_new_id);
            IF v_holder <> v_new_id AND (v_found_id IS NULL OR v_kind = 'phone') THEN
                v_found_id := v_holder;
            END IF;
        END LOOP;
        EXIT WHEN v_found_id IS NULL;
        v_customer := crm_private.customer('p_contact', v_found_id);
        EXIT WHEN v_customer.id = v_erased_id OR NOT EXISTS (
            SELECT FROM public.customer_erasures e WHERE e.customer_id = v_customer.id
        );
        -- erased while this call waited: the contact is free again
        v_erased_id := v_customer.id;
    END LOOP;
    v_phone := coalesce(v_phone, CASE crm_private.contact_kind(v_contact) WHEN 'phone' THEN v_contact END);
    v_email := coalesce(
        v_email, CASE crm_private.contact_kind(v_contact) WHEN 'email' THEN crm_private.folded_email(v_contact) END
    );
    v_new_contacts := ARRAY(SELECT c.id FROM public.customer_contacts c WHERE c.customer_id = v_new_id);
    IF v_found_id IS NULL THEN
        INSERT INTO public.customers (id, full_name, phone, email, preferred_channel, country)
        VALUES (
            v_new_id, v_full_name, v_phone, v_email, coalesce(v_channel, 'telegram')::public.preferred_channel_enum,
            v_country
        )
        RETURNING * INTO v_customer;
        PERFORM crm_private.audit(v_actor.id, 'create', 'customers', v_customer.id, v_customer);
    ELSE
        -- what the customer has not told before is kept
        UPDATE public.customer_contacts c SET customer_id = v_customer.id WHERE c.id = ANY (v_new_contacts);
        v_phone_is_new := v_customer.phone IS NULL AND EXISTS (
            SELECT FROM public.customer_contacts c WHERE c.id = ANY (v_new_contacts) AND c.kind = 'phone'
                AND c.key = crm_private.phone_digits(v_phone)
        );
        v_email_is_new := v_customer.email IS NULL AND EXISTS (
            SELECT FROM public.customer_contacts c WHERE c.id = ANY (v_new_contacts) AND c.kind = 'email'
                AND c.key = v_email
        );
        IF v_phone_is_new OR v_email_is_new THEN
            SELECT * INTO STRICT v_old FROM public.customers c WHERE c.id = v_customer.id FOR NO KEY UPDATE;
            UPDATE public.customers c SET
                phone = coalesce(c.phone, CASE WHEN v_phone_is_new THEN v_phone END),
                email = coalesce(c.email, CASE WHEN v_email_is_new THEN v_email END)
            WHERE c.id = v_customer.id RETURNING * INTO v_customer;
            PERFORM crm_private.audit_update(
                v_actor.id, 'customers', v_customer.id, to_jsonb(v_old), to_jsonb(v_customer)
            );
        END IF;
    END IF;
    PERFORM crm_private.audit(v_actor.id, 'create', 'customer_contacts', c.id, c)
    FROM public.customer_contacts c WHERE c.id = ANY (v_new_contacts) ORDER BY c.kind, c.key;
    INSERT INTO public.leads (
        source, customer_id, contact, bike_url, bike_snapshot, customer_comment, estimated_budget_eur, status
    )
    VALUES (
        v_source, v_customer.id, v_told, v_bike_url, v_bike_snapshot, v_comment, p_estimated_budget_eur, 'new'
    )
    RETURNING * INTO v_lead;
    PERFORM crm_private.audit(v_actor.id, 'create', 'leads', v_lead.id, v_lead);
    PERFORM crm_private.keep_result('create_lead_safe', v_idempotency_key, v_lead.id);
    RETURN jsonb_build_object(
        'id', v_lead.id, 'duplicate', false, 'customer_id', v_lead.customer_id, 'status', v_lead.status
    );
END
$$;
COMMENT ON FUNCTION public.create_lead_safe IS
    E'Creates a lead with status new, and finds or creates its customer.\n'
    'Rules: a phone, an e-mail address or a messenger contact is required; the customer is found by the digits of the '
    'phone, else by the address regardless of case, else by the messenger name; a phone that starts with + or 00 is '
    'international, without them 8 and ten digits is a Russian number, and an extension does not count; in p_contact a '
    'phone, an address, @name (of p_preferred_channel, telegram if none is given) and t.me/name are recognized, other '
    'text finds nobody; contacts that a known customer has not had are added to it; without p_user_id the system user '
    'acts; a repeated p_idempotency_key with the same arguments returns the first lead as it is now, with duplicate '
    'true.\n'
    'Errors: 42501 p_user_id unknown or inactive; PT422 source or name blank, no contact, phone, address, channel, '
    'budget or idempotency key not accepted; PT409 idempotency key of other arguments.';

CREATE FUNCTION public.advance_lead_status_safe(
    p_lead_id uuid, p_new_status text, p_user_id uuid, p_notes text DEFAULT NULL, p_assigned_to uuid DEFAULT NULL,
    p_expected_version integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id, p_assignee => p_assigned_to);
    v_new_status text := crm_private.label('p_new_status', p_new_status, 'public.lead_status_enum', true);
    v_note text := crm_private.note('p_notes', p_notes);
    v_notes text;
    v_accepted jsonb;
    v_old public.leads;
    v_new public.leads;
BEGIN
    PERFORM crm_private.required_id('p_lead_id', p_lead_id);
    v_old := crm_private.locked_lead(p_lead_id);
    PERFORM crm_private.assignee_exists('p_assigned_to', p_assigned_to);
    v_accepted := CASE v_old.status::text
        WHEN 'new' THEN '["in_progress", "rejected"]'
        WHEN 'in_progress' THEN '["rejected"]'
        WHEN 'rejected' THEN '["in_progress"]'
        ELSE '[]'
    END;
    PERFORM crm_private.check_version('leads', v_old.id, v_old.version, p_expected_version);
    IF NOT v_accepted ? v_new_status THEN
        PERFORM crm_private.conflict(
            'lead_transition', format('a lead cannot go from %s to %s', v_old.status, v_new_status),
            jsonb_build_object(
                'field', 'p_new_status', 'found', v_new_status, 'from', v_old.status, 'id', v_old.id,
                'accepted', v_accepted
            ),
            'Only create_order_safe makes a lead converted.'
        );
    END IF;
    PERFORM crm_private.assignee_active('p_assigned_to', p_assigned_to);
    v_notes := nullif(concat_ws(E'\n', v_old.notes, v_note), '');
    IF v_note IS NOT NULL AND octet_length(v_notes) > 16384 THEN
        PERFORM crm_private.conflict(
            'notes_full', 'together with the notes that this lead has, p_notes are longer than 16 KiB',
            jsonb_build_object(
                'field', 'p_notes', 'found', octet_length(v_notes), 'accepted', 'together at most 16384 bytes',
                'id', v_old.id
            ),
            'Shorten the notes first: update_lead_safe replaces them.'
        );
    END IF;
    UPDATE public.leads l SET
        status = v_new_status::public.lead_status_enum,
        assigned_to = coalesce(p_assigned_to, v_actor.id),
        notes = v_notes,
        updated_at = clock_timestamp()
    WHERE l.id = v_old.id RETURNING * INTO v_new;
    PERFORM crm_private.audit(
        v_actor.id, 'status_change', 'leads', v_new.id, v_new,
        jsonb_build_object('old', v_old.status, 'new', v_new.status, 'notes', v_note)
    );
    RETURN jsonb_build_object(
        'id', v_new.id, 'status', v_new.status, 'assigned_to', v_new.assigned_to, 'version', v_new.version
    );
END
$$;
COMMENT ON FUNCTION public.advance_lead_status_safe IS
    E'Moves a lead: new to in_progress or rejected, in_progress to rejected, rejected back to in_progress.\n'
    'Rules: any active user; the lead goes to p_assigned_to, else to the actor; p_notes are appended to the '
    'existing notes; only create_order_safe makes a lead converted.\n'
    'Errors: 42501 actor unknown or inactive; PT422 unknown status, notes too long; PT404 no such lead or assignee; '
    'PT409 transition not allowed, assignee inactive, notes too long together with the existing ones, lead changed '
    'since p_expected_version.';

CREATE FUNCTION public.update_lead_safe(
    p_lead_id uuid, p_user_id uuid, p_source text DEFAULT NULL, p_contact text DEFAULT NULL, p_notes text DEFAULT NULL,
    p_customer_comment text DEFAULT NULL, p_bike_url text DEFAULT NULL, p_bike_snapshot jsonb DEFAULT NULL,
    p_estimated_budget_eur integer DEFAULT NULL, p_assigned_to uuid DEFAULT NULL,
    p_expected_version integer DEFAULT NULL, p_clear text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id, p_assignee => p_assigned_to);
    v_source text := crm_private.note('p_source', p_source);
    v_contact text := crm_private.note('p_contact', p_contact);
    v_clear text[] := crm_private.cleared(
        p_clear, '{notes, customer_comment, bike_url, bike_snapshot, estimated_budget_eur, assigned_to}',
        jsonb_build_object(
            'notes', p_notes, 'customer_comment', p_customer_comment, 'bike_url', p_bike_url,
            'bike_snapshot', p_bike_snapshot, 'estimated_budget_eur', p_estimated_budget_eur,
            'assigned_to', p_assigned_to
        )
    );
    v_notes text := crm_private.note('p_notes', p_notes);
    v_comment text := crm_private.note('p_customer_comment', p_customer_comment);
    v_bike_url text := crm_private.note('p_bike_url', p_bike_url);
    v_bike_snapshot jsonb := crm_private.snapshot('p_bike_snapshot', p_bike_snapshot);
    v_old public.leads;
    v_new public.leads;
BEGIN
    PERFORM crm_private.required_id('p_lead_id', p_lead_id);
    IF p_estimated_budget_eur < 0 THEN
        PERFORM crm_private.invalid('p_estimated_budget_eur', p_estimated_budget_eur::text, 'zero or more');
    END IF;
    v_old := crm_private.locked_lead(p_lead_id);
    PERFORM crm_private.assignee_exists('p_assigned_to', p_assigned_to);
    PERFORM crm_private.check_version('leads', v_old.id, v_old.version, p_expected_version);
    PERFORM crm_private.assignee_active('p_assigned_to', p_assigned_to);
    UPDATE public.leads l SET
        source = coalesce(v_source, l.source),
        contact = coalesce(v_contact, l.contact),
        notes = coalesce(v_notes, CASE WHEN 'notes' <> ALL (v_clear) THEN l.notes END),
        customer_comment = coalesce(
            v_comment, CASE WHEN 'customer_comment' <> ALL (v_clear) THEN l.customer_comment END
        ),
        bike_url = coalesce(v_bike_url, CASE WHEN 'bike_url' <> ALL (v_clear) THEN l.bike_url END),
        bike_snapshot = coalesce(
            v_bike_snapshot, CASE WHEN 'bike_snapshot' <> ALL (v_clear) THEN l.bike_snapshot END
        ),
        estimated_budget_eur = coalesce(
            p_estimated_budget_eur, CASE WHEN 'estimated_budget_eur' <> ALL (v_clear) THEN l.estimated_budget_eur END
        ),
        assigned_to = coalesce(p_assigned_to, CASE WHEN 'assigned_to' <> ALL (v_clear) THEN l.assigned_to END),
        updated_at = clock_timestamp()
    WHERE l.id = v_old.id RETURNING * INTO v_new;
    PERFORM crm_private.audit_update(v_actor.id, 'leads', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    RETURN jsonb_build_object('id', v_new.id, 'status', v_new.status, 'version', v_new.version);
END
$$;
COMMENT ON FUNCTION public.update_lead_safe IS
    E'Changes a lead''s source, contact, notes, comment, bike, budget or assignee; never its status.\n'
    'Rules: any active user; NULL or blank arguments change nothing; p_notes replace the notes; p_clear empties fields '
    '(notes, customer_comment, bike_url, bike_snapshot, estimated_budget_eur, assigned_to).\n'
    'Errors: 42501 actor unknown or inactive; PT422 budget below zero, a text or the bike''s snapshot too long, a '
    'field of p_clear required, unknown or also given; PT404 no such lead or assignee; PT409 assignee inactive, lead '
    'changed since p_expected_version.';

CREATE FUNCTION public.create_order_safe(
    p_customer_id uuid, p_lead_id uuid DEFAULT NULL, p_items jsonb DEFAULT NULL, p_total_amount numeric DEFAULT NULL,
    p_currency text DEFAULT NULL, p_user_id uuid DEFAULT NULL, p_order_code text DEFAULT NULL,
    p_bike_url text DEFAULT NULL, p_bike_snapshot jsonb DEFAULT NULL, p_commission_eur numeric DEFAULT NULL,
    p_assigned_manager uuid DEFAULT NULL, p_idempotency_key text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(
        p_user_id, true,
        coalesce(p_assigned_manager, (SELECT l.assigned_to FROM public.leads l WHERE l.id = p_lead_id))
    );
    v_total numeric := crm_private.amount('p_total_amount', p_total_amount);
    v_currency text := crm_private.label('p_currency', p_currency, 'public.currency_enum', true);
    v_items jsonb := coalesce(crm_private.items('p_items', p_items), '[]'::jsonb);
    v_bike_url text := crm_private.note('p_bike_url', p_bike_url);
    v_bike_snapshot jsonb := crm_private.snapshot('p_bike_snapshot', p_bike_snapshot);
    v_code text := crm_private.reference('p_order_code', p_order_code);
    v_key text := crm_private.reference('p_idempotency_key', p_idempotency_key);
    v_first uuid;
    v_number text;
    v_lead public.leads;
    v_old_lead_status public.lead_status_enum;
    v_customer_id uuid;
    v_order public.orders;
BEGIN
    IF p_commission_eur IS NOT NULL THEN
        PERFORM crm_private.amount('p_commission_eur', p_commission_eur, true);
    END IF;
    IF p_lead_id IS NULL THEN
        PERFORM crm_private.required_id('p_customer_id', p_customer_id);
    END IF;
    -- the customer before the lead: a merge locks them in this order
    v_customer_id := coalesce(p_customer_id, (SELECT l.customer_id FROM public.leads l WHERE l.id = p_lead_id));
    IF v_customer_id IS NOT NULL THEN
        v_customer_id := (crm_private.customer('p_customer_id', v_customer_id)).id;
    END IF;
    IF p_lead_id IS NOT NULL THEN
        v_lead := crm_private.locked_lead(p_lead_id);
    END IF;
    IF v_customer_id IS NULL THEN
        PERFORM crm_private.not_found('customers', 'p_customer_id', v_customer_id);
    END IF;
    PERFORM crm_private.assignee_exists('p_assigned_manager', p_assigned_manager);
    v_first := crm_private.first_result(
        'create_order_safe', v_key,
        jsonb_build_object(
            'customer_id', p_customer_id, 'lead_id', p_lead_id, 'items', v_items, 'total_amount', trim_scale(v_total),
            'currency', v_currency, 'order_code', v_code, 'bike_url', crm_private.trimmed(p_bike_url),
            'bike_snapshot', p_bike_snapshot, 'commission_eur', trim_scale(p_commission_eur),
            'assigned_manager', p_assigned_manager
        )
    );
    IF v_first IS NOT NULL THEN
        RETURN crm_private.order_result(v_first, true);
    END IF;
    IF v_lead.status NOT IN ('new', 'in_progress') THEN
        PERFORM crm_private.conflict(
            'lead_converts', 'this lead cannot become an order: it is ' || v_lead.status,
            jsonb_build_object(
                'field', 'p_lead_id', 'found', v_lead.status, 'accepted', '["new", "in_progress"]'::jsonb,
                'id', v_lead.id,
                'orders', (SELECT jsonb_agg(o.id) FROM public.orders o WHERE o.lead_id = v_lead.id)
            ),
            'Reopen a rejected lead with advance_lead_status_safe; a converted lead has its order already.'
        );
    END IF;
    IF v_lead.customer_id <> v_customer_id THEN
        PERFORM crm_private.conflict(
            'lead_customer', 'the lead belongs to another customer',
            jsonb_build_object(
                'field', 'p_customer_id', 'found', p_customer_id, 'accepted', v_lead.customer_id, 'id', v_lead.id
            ),
            'Omit p_customer_id: the order gets the lead''s customer.'
        );
    END IF;
    PERFORM crm_private.assignee_active('p_assigned_manager', p_assigned_manager);

    LOOP
        v_number := v_code;
        IF v_code IS NULL THEN
            v_number := nextval('crm_private.order_code_seq');
            -- greatest, because lpad would cut longer numbers
            v_number := to_char(clock_timestamp() AT TIME ZONE 'UTC', '"B"YYMM-')
                || lpad(v_number, greatest(6, length(v_number)), '0');
        END IF;
        INSERT INTO public.orders (
            order_code, order_code_key, customer_id, lead_id, bike_url, bike_snapshot, final_price_eur, commission_eur,
            status, assigned_manager, items, total_amount, currency, created_by, updated_by
        )
        VALUES (
            v_number, crm_private.order_code_key(v_number), v_customer_id, v_lead.id,
            coalesce(v_bike_url, v_lead.bike_url), coalesce(v_bike_snapshot, v_lead.bike_snapshot),
            CASE WHEN v_currency = 'EUR' THEN v_total END, p_commission_eur, 'created',
            coalesce(p_assigned_manager, v_lead.assigned_to), v_items, v_total, v_currency::public.currency_enum,
            v_actor.id, v_actor.id
        )
        ON CONFLICT DO NOTHING RETURNING * INTO v_order;
        EXIT WHEN FOUND;
        IF v_code IS NOT NULL THEN
            -- adopted orders may have the number, but no key
            SELECT * INTO v_order FROM public.orders o
            WHERE o.order_code_key = crm_private.order_code_key(v_code) OR o.order_code = v_code
            ORDER BY o.order_code_key NULLS LAST LIMIT 1;
            PERFORM crm_private.conflict(
                'unique_order_code', 'another order already has this order number',
                jsonb_build_object(
                    'field', 'p_order_code', 'found', v_code, 'accepted', 'a number that no order has', 'id', v_order.id
                ),
                'Omit p_order_code to get the next free number.'
            );
        END IF;
    END LOOP;
    INSERT INTO public.order_status_events (order_id, old_status, new_status, changed_by, seq, reason, created_at)
    VALUES (v_order.id, NULL, 'created', v_actor.id, 1, 'created', v_order.created_at);
    PERFORM crm_private.audit(v_actor.id, 'create', 'orders', v_order.id, v_order);
    IF v_lead.id IS NOT NULL THEN
        v_old_lead_status := v_lead.status;
        UPDATE public.leads l SET status = 'converted', customer_id = v_customer_id, updated_at = clock_timestamp()
        WHERE l.id = v_lead.id RETURNING * INTO v_lead;
        PERFORM crm_private.audit(
            v_actor.id, 'status_change', 'leads', v_lead.id, v_lead,
            jsonb_build_object('old', v_old_lead_status, 'new', v_lead.status, 'order_id', v_order.id)
        );
    END IF;
    PERFORM crm_private.keep_result('create_order_safe', v_key, v_order.id);
    RETURN crm_private.order_result(v_order.id, false);
END
$$;
COMMENT ON FUNCTION public.create_order_safe IS
    E'Creates an order with status created and its first event, from a lead or for a customer.\n'
    'Rules: total and currency are required; items are a list of objects with model and qty, and whatever else you '
    'keep; from a lead: the order is linked to it, inherits its customer, bike '
    'and manager, and the lead becomes converted (from new or in_progress only); an order number is generated if '
    'none is given; one that differs from another order''s only by the case of A to Z or by invisible characters is '
    'taken; final_price_eur is filled for EUR; without p_user_id the system user acts; a repeated p_idempotency_key '
    'with the same arguments returns the first order as it is now, with duplicate true.\n'
    'Errors: 42501 p_user_id unknown or inactive; PT422 total, currency, items, bike, order number, commission or '
    'idempotency key not accepted, neither customer nor lead; PT404 no such lead, customer or manager; PT409 '
    'idempotency key of other arguments, lead rejected or converted, lead of another customer, order number taken, '
    'manager inactive.';

CREATE FUNCTION public.quick_order_safe(
    p_source text, p_full_name text, p_items jsonb, p_total_amount numeric, p_currency text, p_phone text DEFAULT NULL,
    p_email text DEFAULT NULL, p_contact text DEFAULT NULL, p_country text DEFAULT NULL,
    p_preferred_channel text DEFAULT NULL, p_bike_url text DEFAULT NULL, p_bike_snapshot jsonb DEFAULT NULL,
    p_customer_comment text DEFAULT NULL, p_user_id uuid DEFAULT NULL, p_idempotency_key text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id, true);
    v_key text := crm_private.reference('p_idempotency_key', p_idempotency_key);
    v_first uuid;
    v_lead jsonb;
    v_order jsonb;
BEGIN
    v_first := crm_private.first_result(
        'quick_order_safe', v_key,
        jsonb_build_object(
            'source', crm_private.trimmed(p_source), 'full_name', crm_private.trimmed(p_full_name), 'items', p_items,
            'total_amount', trim_scale(p_total_amount), 'currency', p_currency, 'phone', crm_private.trimmed(p_phone),
            'email', crm_private.trimmed(p_email), 'contact', crm_private.trimmed(p_contact),
            'country', crm_private.trimmed(p_country), 'preferred_channel', p_preferred_channel,
            'bike_url', crm_private.trimmed(p_bike_url), 'bike_snapshot', p_bike_snapshot,
            'customer_comment', crm_private.trimmed(p_customer_comment)
        )
    );
    IF v_first IS NOT NULL THEN
        RETURN crm_private.order_result(v_first, true);
    END IF;
    v_lead := public.create_lead_safe(
        p_source => p_source, p_full_name => p_full_name, p_phone => p_phone, p_email => p_email,
        p_contact => p_contact, p_country => p_country, p_preferred_channel => p_preferred_channel,
        p_bike_url => p_bike_url, p_bike_snapshot => p_bike_snapshot, p_customer_comment => p_customer_comment,
        p_user_id => p_user_id
    );
    v_order := public.create_order_safe(
        p_customer_id => (v_lead ->> 'customer_id')::uuid, p_lead_id => (v_lead ->> 'id')::uuid, p_items => p_items,
        p_total_amount => p_total_amount, p_currency => p_currency, p_user_id => p_user_id
    );
    PERFORM crm_private.keep_result('quick_order_safe', v_key, (v_order ->> 'id')::uuid);
    RETURN v_order;
END
$$;
COMMENT ON FUNCTION public.quick_order_safe IS
    E'Creates a guest''s order in one call: lead, customer (found or created) and order, all or nothing.\n'
    'Rules: those of create_lead_safe and create_order_safe; without p_user_id the system user acts; a repeated '
    'p_idempotency_key with the same arguments returns the first order as it is now, with duplicate true. The '
    'result''s id is the order''s.\n'
    'Errors: those of create_lead_safe and create_order_safe.';

CREATE FUNCTION public.update_order_safe(
    p_order_id uuid, p_user_id uuid, p_assigned_manager uuid DEFAULT NULL, p_items jsonb DEFAULT NULL,
    p_bike_url text DEFAULT NULL, p_bike_snapshot jsonb DEFAULT NULL, p_commission_eur numeric DEFAULT NULL,
    p_total_amount numeric DEFAULT NULL, p_currency text DEFAULT NULL, p_reason text DEFAULT NULL,
    p_expected_version integer DEFAULT NULL, p_clear text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id, p_assignee => p_assigned_manager);
    v_clear text[] := crm_private.cleared(
        p_clear, '{assigned_manager, items, bike_url, bike_snapshot, commission_eur}',
        jsonb_build_object(
            'assigned_manager', p_assigned_manager, 'items', p_items, 'bike_url', p_bike_url,
            'bike_snapshot', p_bike_snapshot, 'commission_eur', p_commission_eur
        )
    );
    v_items jsonb := crm_private.items('p_items', p_items);
    v_bike_url text := crm_private.note('p_bike_url', p_bike_url);
    v_bike_snapshot jsonb := crm_private.snapshot('p_bike_snapshot', p_bike_snapshot);
    v_currency text := crm_private.label('p_currency', p_currency, 'public.currency_enum', false);
    v_reason text := crm_private.note('p_reason', p_reason);
    v_money record;
    v_old public.orders;
    v_new public.orders;
BEGIN
    PERFORM crm_private.required_id('p_order_id', p_order_id);
    IF p_commission_eur IS NOT NULL THEN
        PERFORM crm_private.amount('p_commission_eur', p_commission_eur, true);
    END IF;
    IF p_total_amount IS NOT NULL THEN
        PERFORM crm_private.amount('p_total_amount', p_total_amount);
    END IF;
    v_old := crm_private.locked_order(p_order_id);
    PERFORM crm_private.assignee_exists('p_assigned_manager', p_assigned_manager);
    PERFORM crm_private.check_version('orders', v_old.id, v_old.version, p_expected_version);
    IF v_old.status IN ('cancelled', 'closed') AND (
        num_nonnulls(p_items, p_commission_eur, p_bike_url, p_bike_snapshot) > 0
        OR p_clear && ARRAY['items', 'commission_eur', 'bike_url', 'bike_snapshot']
    )
    THEN
        PERFORM crm_private.require_admin(
            v_actor, format('changing items, commission or bike of a %s order', v_old.status)
        );
    END IF;
    v_new := v_old;
    v_new.total_amount := coalesce(p_total_amount, v_old.total_amount);
    v_new.currency := coalesce(v_currency::public.currency_enum, v_old.currency);
    IF (v_new.total_amount, v_new.currency) IS DISTINCT FROM (v_old.total_amount, v_old.currency)
        AND EXISTS (
            SELECT FROM public.payments p WHERE p.order_id = v_old.id AND p.status NOT IN ('failed', 'cancelled')
        )
    THEN
        PERFORM crm_private.require_admin_with_reason(
            v_actor, v_reason, 'total_after_payment', 'changing total or currency of an order with payments',
            jsonb_build_object('id', v_old.id, 'total_amount', v_old.total_amount, 'currency', v_old.currency)
        );
        PERFORM crm_private.check_total(v_old, v_new);
    END IF;
    PERFORM crm_private.assignee_active('p_assigned_manager', p_assigned_manager);
    IF coalesce(p_total_amount, v_old.total_amount) IS NOT NULL AND coalesce(v_currency, v_old.currency::text) IS NULL
    THEN
        PERFORM crm_private.conflict(
            'currency', 'this order has no currency yet',
            jsonb_build_object(
                'field', 'p_currency', 'found', NULL, 'accepted', 'given together with the first total', 'id', v_old.id
            ),
            'Pass p_currency as well.'
        );
    END IF;
    UPDATE public.orders o SET
        assigned_manager = coalesce(
            p_assigned_manager, CASE WHEN 'assigned_manager' <> ALL (v_clear) THEN o.assigned_manager END
        ),
        items = coalesce(v_items, CASE WHEN 'items' <> ALL (v_clear) THEN o.items ELSE '[]' END),
        bike_url = coalesce(v_bike_url, CASE WHEN 'bike_url' <> ALL (v_clear) THEN o.bike_url END),
        bike_snapshot = coalesce(
            v_bike_snapshot, CASE WHEN 'bike_snapshot' <> ALL (v_clear) THEN o.bike_snapshot END
        ),
        commission_eur = coalesce(
            p_commission_eur, CASE WHEN 'commission_eur' <> ALL (v_clear) THEN o.commission_eur END
        ),
        total_amount = coalesce(p_total_amount, o.total_amount),
        currency = coalesce(v_currency::public.currency_enum, o.currency),
        final_price_eur = CASE
            WHEN p_total_amount IS NULL AND v_currency IS NULL THEN o.final_price_eur
            WHEN coalesce(v_currency, o.currency::text) = 'EUR' THEN coalesce(p_total_amount, o.total_amount)
        END,
        updated_by = v_actor.id,
        updated_at = clock_timestamp()
    WHERE o.id = v_old.id RETURNING * INTO v_new;
    PERFORM crm_private.audit_update(
        v_actor.id, 'orders', v_new.id, to_jsonb(v_old), to_jsonb(v_new),
        jsonb_strip_nulls(jsonb_build_object('reason', v_reason))
    );
    -- the client has paid the new total already: the one way to paid besides payments
    IF v_new.status IN ('created', 'awaiting_payment') AND v_new.total_amount IS DISTINCT FROM v_old.total_amount THEN
        SELECT * INTO v_money FROM crm_private.client_money(v_new.id, v_new.currency);
        IF v_money.paid - v_money.refunded >= v_new.total_amount THEN
            PERFORM crm_private.set_order_status(
                v_new.id, 'paid', v_actor.id, 'total_changed', v_reason,
                jsonb_build_object('total_amount', v_new.total_amount)
            );
            SELECT * INTO STRICT v_new FROM public.orders o WHERE o.id = v_old.id;
        END IF;
    END IF;
    RETURN jsonb_build_object(
        'id', v_new.id, 'order_code', v_new.order_code, 'status', v_new.status, 'total_amount', v_new.total_amount,
        'currency', v_new.currency, 'version', v_new.version
    );
END
$$;
COMMENT ON FUNCTION public.update_order_safe IS
    E'Changes an order''s manager, items, bike, commission, total or currency.\n'
    'Rules: any active user; NULL arguments change nothing; once the order has a payment that is neither failed nor '
    'cancelled, total and currency change only by an admin with p_reason, the total never below what was refunded or '
    'paid out, the currency not while there is client money or an open client payment or refund in the old one; client '
    'money that reaches the new total moves the order to paid in the same call (reason total_changed); a higher total '
    'leaves an order paid, but it needs the money before it goes in_delivery; items, commission and bike of a '
    'cancelled or closed order change only by an admin; p_clear empties fields (assigned_manager, items, bike_url, '
    'bike_snapshot, commission_eur).\n'
    'Errors: 42501 actor unknown or inactive, or not an admin where one is needed; PT422 an amount, the currency, the '
    'items or the bike not accepted, a field of p_clear required, unknown or also given; PT404 no such order or '
    'manager; PT409 reason missing, total below what was refunded or paid out, client money in the old currency, first '
    'total without currency, manager inactive, order changed since p_expected_version.';

CREATE FUNCTION public.advance_order_status_safe(
    p_order_id uuid, p_new_status text, p_user_id uuid, p_reason text DEFAULT NULL, p_notes text DEFAULT NULL,
    p_expected_version integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_new_status text := crm_private.label('p_new_status', p_new_status, 'public.order_status_enum', true);
    v_reason text := crm_private.note('p_reason', p_reason);
    v_notes text := crm_private.note('p_notes', p_notes);
    v_order public.orders;
    v_move record;
BEGIN
    PERFORM crm_private.required_id('p_order_id', p_order_id);
    v_order := crm_private.locked_order(p_order_id);
    PERFORM crm_private.check_version('orders', v_order.id, v_order.version, p_expected_version);
    SELECT * INTO v_move FROM crm_private.order_moves(v_order) m WHERE m.to_status::text = v_new_status;
    IF NOT FOUND THEN
        PERFORM crm_private.conflict(
            'order_transition', format('an order cannot go from %s to %s', v_order.status, v_new_status),
            jsonb_build_object(
                'field', 'p_new_status', 'found', v_new_status, 'from', v_order.status, 'id', v_order.id,
                'accepted', (
                    SELECT coalesce(jsonb_agg(m.to_status ORDER BY m.to_status), '[]')
                    FROM crm_private.order_moves(v_order) m
                )
            ),
            CASE v_new_status
                WHEN 'paid' THEN 'Only payments make an order paid: record_generic_payment_safe.'
                ELSE 'Table order_status_transitions lists the transitions.'
            END
        );
    END IF;
    IF v_move.reason_required THEN
        PERFORM crm_private.require_admin_with_reason(v_actor, v_reason, v_move.rule, v_move.what, v_move.detail);
    ELSIF v_move.required_role = 'admin' THEN
        PERFORM crm_private.require_admin(v_actor, v_move.what);
    END IF;
    PERFORM crm_private.set_order_status(
        v_order.id, v_new_status::public.order_status_enum, v_actor.id, v_reason, v_notes,
        '{}'::jsonb
    );
    RETURN jsonb_build_object(
        'id', v_order.id, 'order_code', v_order.order_code, 'old_status', v_order.status, 'status', v_new_status,
        'version', (SELECT o.version FROM public.orders o WHERE o.id = v_order.id)
    );
END
$$;
COMMENT ON FUNCTION public.advance_order_status_safe IS
    E'Moves an order to another status, with event and audit.\n'
    'Rules: only the transitions of order_status_transitions, each with the role it needs; canceling while the '
    'order holds client money, in any currency, needs an admin; so does in_delivery while net client money is below '
    'the total, and p_reason; only payments make an order paid (or a lower total: update_order_safe).\n'
    'Errors: 42501 actor unknown or inactive, or not an admin where one is needed; PT422 unknown status, reason or '
    'notes too long; PT404 no such order; PT409 transition not allowed, reason missing, order changed since '
    'p_expected_version.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
