-- RPCs for customers: edit, merge; and the contacts of customers that the table owner writes directly.
-- Lock order, here and in create_lead_safe: contacts (by kind and key), customers (by id), leads, orders.

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.update_customer_safe(
    p_customer_id uuid, p_user_id uuid, p_full_name text DEFAULT NULL, p_phone text DEFAULT NULL,
    p_email text DEFAULT NULL, p_preferred_channel text DEFAULT NULL, p_country text DEFAULT NULL,
    p_billing_address jsonb DEFAULT NULL, p_delivery_details jsonb DEFAULT NULL,
    p_expected_version integer DEFAULT NULL, p_clear text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_phone text := crm_private.phone('p_phone', p_phone);
    v_email text := crm_private.email('p_email', p_email);
    v_channel text := crm_private.label(
        'p_preferred_channel', p_preferred_channel, 'public.preferred_channel_enum', false
    );
    v_full_name text := crm_private.note('p_full_name', p_full_name);
    v_country text := crm_private.note('p_country', p_country);
    v_billing_address jsonb := crm_private.snapshot(
        'p_billing_address', crm_private.json_of_type('p_billing_address', p_billing_address, 'object')
    );
    v_delivery_details jsonb := crm_private.snapshot(
        'p_delivery_details', crm_private.json_of_type('p_delivery_details', p_delivery_details, 'object')
    );
    v_clear text[] := crm_private.cleared(
        p_clear, '{phone, email, preferred_channel, country, billing_address, delivery_details}',
        jsonb_build_object(
            'phone', p_phone, 'email', p_email, 'preferred_channel', p_preferred_channel, 'country', p_country,
            'billing_address', p_billing_address, 'delivery_details', p_delivery_details
        )
    );
    v_new_id uuid := gen_random_uuid();
    v_kind text;
    v_key text;
    v_holder public.customers;
    v_contact public.customer_contacts;
    v_moved public.customer_contacts;
    v_old public.customers;
    v_new public.customers;
BEGIN
    PERFORM crm_private.required_id('p_customer_id', p_customer_id);
    SET CONSTRAINTS public.customer_contacts_customer_id_fkey DEFERRED;
    FOR v_kind, v_key IN SELECT c.kind, c.key FROM crm_private.contacts(v_phone, v_email) c LOOP
        LOOP
            PERFORM crm_private.claim_contact(v_kind, v_key, v_new_id);
            -- held against another edit that takes the contact over; gone if its customer was erased meanwhile
            PERFORM FROM public.customer_contacts c WHERE c.kind = v_kind AND c.key = v_key FOR NO KEY UPDATE;
            EXIT WHEN FOUND;
        END LOOP;
    END LOOP;
    v_old := crm_private.customer('p_customer_id', p_customer_id);
    SELECT * INTO STRICT v_old FROM public.customers c WHERE c.id = v_old.id FOR NO KEY UPDATE;
    PERFORM crm_private.not_erased('p_customer_id', v_old.id);
    PERFORM crm_private.check_version('customers', v_old.id, v_old.version, p_expected_version);
    FOR v_contact IN
        SELECT c.* FROM crm_private.contacts(v_phone, v_email) k
        JOIN public.customer_contacts c ON c.kind = k.kind AND c.key = k.key
        WHERE c.customer_id <> v_old.id
    LOOP
        -- an adopted customer may share its contact with an older one, who has it
        CONTINUE WHEN v_contact.key = CASE v_contact.kind
            WHEN 'phone' THEN crm_private.phone_digits(v_old.phone)
            ELSE crm_private.folded_email(v_old.email)
        END AND v_contact.customer_id <> v_new_id;
        SELECT * INTO v_holder FROM public.customers c WHERE c.id = v_contact.customer_id;
        IF v_contact.key IN (crm_private.phone_digits(v_holder.phone), crm_private.folded_email(v_holder.email)) THEN
            PERFORM crm_private.conflict(
                'contact_taken', format('another customer has this %s', v_contact.kind),
                jsonb_build_object(
                    'field', 'p_' || v_contact.kind, 'found', v_contact.key,
                    'accepted', 'a contact that no other customer has', 'id', v_holder.id
                ),
                'If both are one person, merge them (merge_customers_safe).'
            );
        END IF;
        -- new, or one that its customer had only before: a number that was corrected, or changed hands
        UPDATE public.customer_contacts c SET customer_id = v_old.id WHERE c.id = v_contact.id
        RETURNING * INTO STRICT v_moved;
        IF v_contact.customer_id = v_new_id THEN
            PERFORM crm_private.audit(v_actor.id, 'create', 'customer_contacts', v_moved.id, v_moved);
        ELSE
            PERFORM crm_private.audit_update(
                v_actor.id, 'customer_contacts', v_moved.id, to_jsonb(v_contact), to_jsonb(v_moved)
            );
        END IF;
    END LOOP;
    UPDATE public.customers c SET
        full_name = coalesce(v_full_name, c.full_name),
        phone = coalesce(v_phone, CASE WHEN 'phone' <> ALL (v_clear) THEN c.phone END),
        email = coalesce(v_email, CASE WHEN 'email' <> ALL (v_clear) THEN c.email END),
        preferred_channel = coalesce(
            v_channel::public.preferred_channel_enum,
            CASE WHEN 'preferred_channel' <> ALL (v_clear) THEN c.preferred_channel END
        ),
        country = coalesce(v_country, CASE WHEN 'country' <> ALL (v_clear) THEN c.country END),
        billing_address = coalesce(
            v_billing_address, CASE WHEN 'billing_address' <> ALL (v_clear) THEN c.billing_address END
        ),
        delivery_details = coalesce(
            v_delivery_details, CASE WHEN 'delivery_details' <> ALL (v_clear) THEN c.delivery_details END
        )
    WHERE c.id = v_old.id RETURNING * INTO v_new;
    PERFORM crm_private.audit_update(v_actor.id, 'customers', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    RETURN jsonb_build_object('id', v_new.id, 'version', v_new.version);
END
$$;
COMMENT ON FUNCTION public.update_customer_safe IS
    E'Changes a customer''s name, contacts and addresses.\n'
    'Rules: any active user; NULL or blank arguments change nothing; billing address and delivery details are JSON '
    'objects; a phone or address that another customer has is refused, one that another customer had only earlier '
    'changes hands; the customer is still found by its earlier contacts; a merged customer stands for the one it was '
    'merged into, whose id is the result''s; p_clear empties fields (phone, email, preferred_channel, country, '
    'billing_address, delivery_details).\n'
    'Errors: 42501 actor unknown or inactive; PT422 name, phone, e-mail address, channel, country, billing address or '
    'delivery details not accepted, a field of p_clear required, unknown or also given; PT404 no such customer; PT409 '
    'contact of another customer, customer erased, or changed since p_expected_version.';

CREATE FUNCTION public.merge_customers_safe(
    p_customer_id uuid, p_merged_into uuid, p_user_id uuid, p_reason text
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_reason text := crm_private.required_text('p_reason', p_reason);
    v_from public.customers;
    v_into public.customers;
    v_contacts uuid[];
    v_followers uuid[];
    v_old record;
    v_new record;
    v_moved jsonb := '{"leads": 0, "orders": 0, "contacts": 0}';
BEGIN
    PERFORM crm_private.required_id('p_customer_id', p_customer_id);
    PERFORM crm_private.required_id('p_merged_into', p_merged_into);
    IF p_customer_id = p_merged_into THEN
        PERFORM crm_private.invalid('p_merged_into', p_merged_into::text, 'another customer than p_customer_id');
    END IF;
    LOOP
        SELECT * INTO v_from FROM public.customers c WHERE c.id = p_customer_id;
        IF NOT FOUND THEN
            PERFORM crm_private.not_found('customers', 'p_customer_id', p_customer_id);
        END IF;
        SELECT * INTO v_into FROM public.customers c WHERE c.id = p_merged_into;
        IF NOT FOUND THEN
            PERFORM crm_private.not_found('customers', 'p_merged_into', p_merged_into);
        END IF;
        PERFORM crm_private.require_admin(v_actor, 'merging customers');
        IF v_into.merged_into IS NOT NULL THEN
            SELECT * INTO STRICT v_into FROM public.customers c WHERE c.id = v_into.merged_into;
        END IF;
        IF coalesce(v_from.merged_into, v_from.id) = v_into.id THEN
            RETURN jsonb_build_object('id', v_into.id, 'merged', p_customer_id, 'duplicate', true) || v_moved;
        END IF;
        IF v_from.merged_into IS NOT NULL THEN
            PERFORM crm_private.conflict(
                'merged', 'this customer was merged into another one already',
                jsonb_build_object(
                    'field', 'p_customer_id', 'found', p_customer_id, 'accepted', v_from.merged_into, 'id', v_from.id
                ),
                'If all of them are one person, merge that one: merge_customers_safe.'
            );
        END IF;
        -- Contacts before customers, all by id or key, so that merges, edits and leads wait instead of deadlocking.
        -- What joins the customer between the two steps isn't locked: then both steps are undone and done again.
        BEGIN
            v_contacts := ARRAY(
                SELECT c.id FROM public.customer_contacts c
                WHERE c.customer_id = v_from.id ORDER BY c.kind COLLATE "C", c.key COLLATE "C"
            );
            PERFORM FROM public.customer_contacts c WHERE c.id = ANY (v_contacts)
            ORDER BY array_position(v_contacts, c.id) FOR NO KEY UPDATE;
            v_followers := ARRAY(SELECT c.id FROM public.customers c WHERE c.merged_into = v_from.id);
            FOR v_old IN
                SELECT c.id FROM public.customers c
                WHERE c.id IN (v_from.id, v_into.id) OR c.id = ANY (v_followers) ORDER BY c.id
            LOOP
                IF v_old.id IN (v_from.id, v_into.id) THEN
                    PERFORM FROM public.customers c WHERE c.id = v_old.id FOR UPDATE;
                ELSE
                    PERFORM FROM public.customers c WHERE c.id = v_old.id FOR NO KEY UPDATE;
                END IF;
            END LOOP;
            EXIT WHEN NOT EXISTS (
                SELECT FROM public.customers c WHERE c.id IN (v_from.id, v_into.id) AND c.merged_into IS NOT NULL
                UNION ALL
                SELECT FROM public.customers c WHERE c.merged_into = v_from.id AND c.id <> ALL (v_followers)
                UNION ALL
                SELECT FROM public.customer_contacts c
                WHERE c.customer_id = v_from.id AND c.id <> ALL (v_contacts)
            );
            RAISE EXCEPTION USING ERRCODE = 'CR001';
        EXCEPTION WHEN SQLSTATE 'CR001' THEN
            NULL;
        END;
    END LOOP;
    PERFORM crm_private.not_erased('p_customer_id', v_from.id);
    PERFORM crm_private.not_erased('p_merged_into', v_into.id);
    FOR v_old IN SELECT * FROM public.customer_contacts c WHERE c.customer_id = v_from.id LOOP
        UPDATE public.customer_contacts c SET customer_id = v_into.id WHERE c.id = v_old.id RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(
            v_actor.id, 'customer_contacts', v_new.id, to_jsonb(v_old), to_jsonb(v_new)
        );
        v_moved := jsonb_set(v_moved, '{contacts}', to_jsonb((v_moved ->> 'contacts')::integer + 1));
    END LOOP;
    FOR v_old IN SELECT * FROM public.leads l WHERE l.customer_id = v_from.id ORDER BY l.id FOR NO KEY UPDATE LOOP
        UPDATE public.leads l SET customer_id = v_into.id, updated_at = clock_timestamp() WHERE l.id = v_old.id
        RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(v_actor.id, 'leads', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
        v_moved := jsonb_set(v_moved, '{leads}', to_jsonb((v_moved ->> 'leads')::integer + 1));
    END LOOP;
    FOR v_old IN SELECT * FROM public.orders o WHERE o.customer_id = v_from.id ORDER BY o.id FOR NO KEY UPDATE LOOP
        UPDATE public.orders o SET customer_id = v_into.id, updated_by = v_actor.id, updated_at = clock_timestamp()
        WHERE o.id = v_old.id RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(v_actor.id, 'orders', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
        v_moved := jsonb_set(v_moved, '{orders}', to_jsonb((v_moved ->> 'orders')::integer + 1));
    END LOOP;
    -- those merged into this one earlier, so that one step always leads to the customer who remains
    FOR v_old IN SELECT * FROM public.customers c WHERE c.merged_into = v_from.id ORDER BY c.id LOOP
        UPDATE public.customers c SET merged_into = v_into.id WHERE c.id = v_old.id RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(v_actor.id, 'customers', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    END LOOP;
    UPDATE public.customers c SET merged_into = v_into.id WHERE c.id = v_from.id RETURNING * INTO STRICT v_from;
    PERFORM crm_private.audit(
        v_actor.id, 'merge', 'customers', v_from.id, v_from,
        jsonb_build_object('merged_into', v_into.id, 'reason', v_reason)
    );
    SELECT * INTO STRICT v_old FROM public.customers c WHERE c.id = v_into.id;
    UPDATE public.customers c SET
        phone = coalesce(c.phone, CASE WHEN EXISTS (
            SELECT FROM public.customer_contacts k
            WHERE k.customer_id = c.id AND k.kind = 'phone' AND k.key = crm_private.phone_digits(v_from.phone)
        ) THEN v_from.phone END),
        email = coalesce(c.email, CASE WHEN EXISTS (
            SELECT FROM public.customer_contacts k
            WHERE k.customer_id = c.id AND k.kind = 'email' AND k.key = crm_private.folded_email(v_from.email)
        ) THEN v_from.email END)
    WHERE c.id = v_into.id RETURNING * INTO STRICT v_new;
    IF v_old IS DISTINCT FROM v_new THEN
        PERFORM crm_private.audit_update(v_actor.id, 'customers', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    END IF;
    RETURN jsonb_build_object('id', v_into.id, 'merged', p_customer_id, 'duplicate', false) || v_moved;
END
$$;
COMMENT ON FUNCTION public.merge_customers_safe IS
    E'Merges a customer into another one who is the same person.\n'
    'Rules: admins only, with a reason; leads, orders and contacts move to the customer who remains, who also gets a '
    'missing phone or e-mail address; the merged customer''s row stays, and its id stands for the other one in every '
    'later call; repeating a merge changes nothing and returns duplicate true. The result''s id is that of the '
    'customer who remains.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 an argument missing, reason blank, twice the same '
    'customer; PT404 no such customer; PT409 p_customer_id was merged into another one, a customer '
    'was erased.';

CREATE FUNCTION crm_private.claim_written_contacts() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_kind text;
    v_key text;
    v_id uuid := coalesce(NEW.merged_into, NEW.id);
    v_holder uuid;
    v_claimed boolean;
BEGIN
    -- the owner could attach this function to another table: it must not give contacts away
    IF TG_RELID <> 'public.customers'::regclass THEN
        PERFORM crm_private.refuse(
            '42501', 'this trigger belongs to customers only',
            jsonb_build_object(
                'rule', 'guard', 'found', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME, 'accepted', 'public.customers'
            ),
            'Drop the trigger.'
        );
    END IF;
    FOR v_kind, v_key IN
        SELECT c.kind, c.key FROM crm_private.contacts(NEW.phone, crm_private.folded_email(NEW.email)) c
    LOOP
        v_claimed := NOT EXISTS (
            SELECT FROM public.customer_contacts c WHERE c.kind = v_kind AND c.key = v_key
        );
        v_holder := crm_private.claim_contact(v_kind, v_key, v_id);
        IF v_holder <> v_id AND (
            TG_OP = 'INSERT'
            OR v_kind = 'phone' AND v_key IS DISTINCT FROM crm_private.phone_digits(OLD.phone)
            OR v_kind = 'email' AND v_key IS DISTINCT FROM crm_private.folded_email(OLD.email)
        ) THEN
            PERFORM crm_private.conflict(
                'contact_taken', format('another customer has this %s', v_kind),
                jsonb_build_object(
                    'field', v_kind, 'found', v_key, 'accepted', 'a contact that no other customer has',
                    'id', v_holder
                ),
                'If both are one person, merge them (merge_customers_safe).'
            );
        END IF;
        IF v_claimed AND v_holder = v_id THEN
            PERFORM crm_private.audit(NULL, 'create', 'customer_contacts', c.id, c)
            FROM public.customer_contacts c WHERE c.kind = v_kind AND c.key = v_key;
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION crm_private.claim_written_contacts IS
    'Trigger: gives the phone and e-mail address that the table owner writes in customers to that customer; PT409 if '
    'another one has them.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
SELECT crm_private.close_functions('crm_private', ARRAY[crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
