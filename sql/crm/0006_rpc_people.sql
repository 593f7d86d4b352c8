-- RPCs for people: identities, CRM users, customers.

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.resolve_crm_user(p_provider text, p_external_id text, p_email text DEFAULT NULL) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_provider text := crm_private.short_text('p_provider', crm_private.required_text('p_provider', p_provider));
    v_external_id text := crm_private.short_text(
        'p_external_id', crm_private.required_text('p_external_id', p_external_id)
    );
    v_email text := crm_private.email('p_email', p_email);
    v_user public.users;
    v_mapped uuid;
    v_identity public.user_identity_map;
BEGIN
    SELECT m.crm_user_id INTO v_mapped FROM public.user_identity_map m
    WHERE m.provider = v_provider AND m.external_id = v_external_id;
    IF v_mapped IS NULL AND v_email IS NOT NULL THEN
        SELECT u.id INTO v_mapped FROM public.users u WHERE crm_private.folded_email(u.email) = v_email AND u.active;
        IF FOUND THEN
            INSERT INTO public.user_identity_map (provider, external_id, crm_user_id)
            VALUES (v_provider, v_external_id, v_mapped) ON CONFLICT DO NOTHING RETURNING * INTO v_identity;
            IF FOUND THEN
                PERFORM crm_private.audit(
                    v_mapped, 'map_identity', 'user_identity_map', v_mapped, to_jsonb(v_identity),
                    jsonb_build_object('by', 'email')
                );
            END IF;
            -- another request may have mapped it a moment ago: the map decides
            SELECT m.crm_user_id INTO STRICT v_mapped FROM public.user_identity_map m
            WHERE m.provider = v_provider AND m.external_id = v_external_id;
        END IF;
    END IF;
    SELECT * INTO v_user FROM public.users u WHERE u.id = v_mapped AND u.active;
    IF NOT FOUND THEN
        PERFORM crm_private.refuse(
            '42501', 'this identity belongs to no active CRM user',
            jsonb_build_object(
                'rule', 'identity', 'field', 'p_external_id', 'found', v_external_id, 'provider', v_provider,
                'accepted', 'a mapped identity, or the e-mail address of an active user'
            ),
            'Ask an admin to create the user (create_user_safe), activate it or map the identity (map_identity_safe).'
        );
    END IF;
    RETURN jsonb_build_object('id', v_user.id, 'name', v_user.name, 'email', v_user.email, 'role', v_user.role);
END
$$;
COMMENT ON FUNCTION public.resolve_crm_user IS
    E'Finds the CRM user behind an identity: by the identity map, else by e-mail address, and then maps it.\n'
    'Rules: the caller guarantees that p_email is verified; a mapped identity is never mapped to another user; pass '
    'the result''s id as p_user_id to the other calls.\n'
    'Errors: PT422 provider or external id blank or too long, p_email not an address; 42501 user unknown or '
    'inactive.';

CREATE FUNCTION public.create_user_safe(p_name text, p_email text, p_role text, p_user_id uuid) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_name text := crm_private.required_text('p_name', p_name);
    v_email text := crm_private.email('p_email', crm_private.required_text('p_email', p_email));
    v_role text := crm_private.label('p_role', p_role, 'public.user_role_enum', true);
    v_user public.users;
BEGIN
    PERFORM crm_private.require_admin(v_actor, 'creating a user');
    INSERT INTO public.users (name, email, role) VALUES (v_name, v_email, v_role::public.user_role_enum)
    ON CONFLICT (crm_private.folded_email(email)) DO NOTHING RETURNING * INTO v_user;
    IF NOT FOUND THEN
        SELECT * INTO v_user FROM public.users u WHERE crm_private.folded_email(u.email) = v_email;
        PERFORM crm_private.conflict(
            'unique_email', 'a user with this e-mail address exists',
            jsonb_build_object(
                'field', 'p_email', 'found', v_email, 'accepted', 'an address that no user has', 'id', v_user.id
            ),
            'Use the existing user (set_user_active_safe if inactive).'
        );
    END IF;
    PERFORM crm_private.audit(v_actor.id, 'create', 'users', v_user.id, to_jsonb(v_user));
    RETURN jsonb_build_object('id', v_user.id, 'name', v_user.name, 'email', v_user.email, 'role', v_user.role);
END
$$;
COMMENT ON FUNCTION public.create_user_safe IS
    E'Creates an active CRM user.\n'
    'Rules: admins only; the e-mail address is unique, regardless of case and surrounding blanks. For the very '
    'first admin, run crm-analytics crm create-admin.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 name blank, address or role not accepted; PT409 '
    'address taken.';

CREATE FUNCTION public.set_user_active_safe(p_crm_user_id uuid, p_active boolean, p_user_id uuid) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users;
    v_old public.users;
    v_new public.users;
BEGIN
    -- one at a time: two admins who deactivate each other would leave none
    PERFORM pg_advisory_xact_lock(hashtextextended('crm:set_user_active', 0));
    v_actor := crm_private.actor(p_user_id);
    PERFORM crm_private.required_id('p_crm_user_id', p_crm_user_id);
    IF p_active IS NULL THEN
        PERFORM crm_private.invalid('p_active', NULL, 'true or false');
    END IF;
    SELECT * INTO v_old FROM public.users u WHERE u.id = p_crm_user_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('users', 'p_crm_user_id', p_crm_user_id);
    END IF;
    PERFORM crm_private.require_admin(v_actor, 'activating or deactivating a user');
    IF v_old.id = v_actor.id OR v_old.id = crm_private.system_user_id() THEN
        PERFORM crm_private.conflict(
            'user_active', 'the acting admin and the system user cannot be activated or deactivated',
            jsonb_build_object('field', 'p_crm_user_id', 'found', p_crm_user_id, 'accepted', 'another user'),
            'Ask another admin to do it.'
        );
    END IF;
    IF v_old.active <> p_active THEN
        UPDATE public.users u SET active = p_active WHERE u.id = v_old.id RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(v_actor.id, 'users', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    END IF;
    RETURN jsonb_build_object('id', v_old.id, 'active', p_active);
END
$$;
COMMENT ON FUNCTION public.set_user_active_safe IS
    E'Activates or deactivates a CRM user.\n'
    'Rules: admins only; not oneself (so that an admin remains) and not the system user.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 an argument is missing; PT404 no such user; PT409 '
    'oneself or the system user.';

CREATE FUNCTION public.map_identity_safe(
    p_provider text, p_external_id text, p_crm_user_id uuid, p_user_id uuid
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_provider text := crm_private.short_text('p_provider', crm_private.required_text('p_provider', p_provider));
    v_external_id text := crm_private.short_text(
        'p_external_id', crm_private.required_text('p_external_id', p_external_id)
    );
    v_mapped uuid;
    v_identity public.user_identity_map;
BEGIN
    PERFORM crm_private.required_id('p_crm_user_id', p_crm_user_id);
    PERFORM crm_private.assignee_exists('p_crm_user_id', p_crm_user_id);
    PERFORM crm_private.require_admin(v_actor, 'mapping an identity');
    PERFORM crm_private.assignee_active('p_crm_user_id', p_crm_user_id);
    INSERT INTO public.user_identity_map (provider, external_id, crm_user_id)
    VALUES (v_provider, v_external_id, p_crm_user_id) ON CONFLICT DO NOTHING RETURNING * INTO v_identity;
    IF FOUND THEN
        PERFORM crm_private.audit(
            v_actor.id, 'map_identity', 'user_identity_map', p_crm_user_id, to_jsonb(v_identity),
            jsonb_build_object('by', 'admin')
        );
    ELSE
        SELECT m.crm_user_id INTO STRICT v_mapped FROM public.user_identity_map m
        WHERE m.provider = v_provider AND m.external_id = v_external_id;
        IF v_mapped <> p_crm_user_id THEN
            PERFORM crm_private.conflict(
                'identity', 'this identity is mapped to another user',
                jsonb_build_object(
                    'field', 'p_crm_user_id', 'found', p_crm_user_id, 'accepted', v_mapped, 'id', v_mapped
                ),
                'An identity is never remapped: deactivate the user it is mapped to, or use another identity.'
            );
        END IF;
    END IF;
    RETURN jsonb_build_object('id', p_crm_user_id, 'provider', v_provider, 'external_id', v_external_id);
END
$$;
COMMENT ON FUNCTION public.map_identity_safe IS
    E'Maps an identity provider''s account to a CRM user.\n'
    'Rules: admins only; a mapped identity is never mapped to another user; repeating a mapping changes nothing.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 an argument is missing; PT404 no such user; PT409 '
    'user inactive or identity mapped to another.';

CREATE FUNCTION public.update_customer_safe(
    p_customer_id uuid, p_user_id uuid, p_full_name text DEFAULT NULL, p_phone text DEFAULT NULL,
    p_email text DEFAULT NULL, p_preferred_channel text DEFAULT NULL, p_country text DEFAULT NULL,
    p_billing_address jsonb DEFAULT NULL, p_delivery_details jsonb DEFAULT NULL
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
    v_billing_address jsonb := crm_private.json_of_type('p_billing_address', p_billing_address, 'object');
    v_delivery_details jsonb := crm_private.json_of_type('p_delivery_details', p_delivery_details, 'object');
    v_old public.customers;
    v_new public.customers;
BEGIN
    PERFORM crm_private.required_id('p_customer_id', p_customer_id);
    SELECT * INTO v_old FROM public.customers c WHERE c.id = p_customer_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('customers', 'p_customer_id', p_customer_id);
    END IF;
    UPDATE public.customers c SET
        full_name = coalesce(crm_private.trimmed(p_full_name), c.full_name),
        phone = coalesce(v_phone, c.phone),
        email = coalesce(v_email, c.email),
        preferred_channel = coalesce(v_channel::public.preferred_channel_enum, c.preferred_channel),
        country = coalesce(crm_private.trimmed(p_country), c.country),
        billing_address = coalesce(v_billing_address, c.billing_address),
        delivery_details = coalesce(v_delivery_details, c.delivery_details)
    WHERE c.id = v_old.id RETURNING * INTO v_new;
    PERFORM crm_private.audit_update(v_actor.id, 'customers', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    RETURN jsonb_build_object('id', v_new.id);
END
$$;
COMMENT ON FUNCTION public.update_customer_safe IS
    E'Changes a customer''s name, contacts and addresses.\n'
    'Rules: any active user; NULL or blank arguments change nothing; billing address and delivery details are JSON '
    'objects.\n'
    'Errors: 42501 actor unknown or inactive; PT422 phone, e-mail address, channel, billing address or delivery '
    'details not accepted; PT404 no such customer.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
