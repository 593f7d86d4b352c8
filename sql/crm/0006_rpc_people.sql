-- RPCs for CRM users and their identities. Whatever changes a user calls crm_private.lock_user before it reads its
-- actor.
-- No search_path: the helpers here are like those of 0005.

CREATE FUNCTION crm_private.map_identity(
    p_provider text, p_external_id text, p_crm_user_id uuid, p_actor uuid, p_by text
) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
    v_identity public.user_identity_map;
    v_mapped uuid;
BEGIN
    LOOP
        INSERT INTO public.user_identity_map (provider, external_id, crm_user_id)
        VALUES (p_provider, p_external_id, p_crm_user_id) ON CONFLICT DO NOTHING RETURNING * INTO v_identity;
        IF FOUND THEN
            PERFORM crm_private.audit(
                p_actor, 'map_identity', 'user_identity_map', p_crm_user_id, v_identity,
                jsonb_build_object('by', p_by)
            );
            RETURN p_crm_user_id;
        END IF;
        SELECT m.crm_user_id INTO v_mapped FROM public.user_identity_map m
        WHERE m.provider = p_provider AND m.external_id = p_external_id;
        -- otherwise it was unmapped a moment ago
        IF FOUND THEN
            RETURN v_mapped;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION crm_private.map_identity IS
    'Maps an identity, unless it is mapped already; returns the user that it is mapped to.';

CREATE FUNCTION crm_private.changeable_user(p_actor public.users, p_crm_user_id uuid, p_what text) RETURNS public.users
LANGUAGE plpgsql
AS $$
DECLARE
    v_user public.users;
BEGIN
    SELECT * INTO v_user FROM public.users u WHERE u.id = p_crm_user_id;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('users', 'p_crm_user_id', p_crm_user_id);
    END IF;
    PERFORM crm_private.require_admin(p_actor, p_what);
    IF v_user.id = crm_private.system_user_id() THEN
        PERFORM crm_private.conflict(
            'system_user', 'the system user never changes',
            jsonb_build_object('field', 'p_crm_user_id', 'found', p_crm_user_id, 'accepted', 'a person''s user'),
            'Choose another user.'
        );
    END IF;
    RETURN v_user;
END
$$;
COMMENT ON FUNCTION crm_private.changeable_user IS
    'Returns the user whom an admin is about to change. Errors: PT404 no such user; 42501 not an admin; PT409 the '
    'system user.';

CREATE FUNCTION crm_private.not_oneself(p_actor public.users, p_user public.users, p_what text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_user.id = p_actor.id THEN
        PERFORM crm_private.conflict(
            'oneself', 'admins cannot change their own ' || p_what,
            jsonb_build_object('field', 'p_crm_user_id', 'found', p_user.id, 'accepted', 'another user'),
            'Ask another admin to do it.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.not_oneself IS
    'Refuses (PT409) that an admin takes rights from themselves: an admin must remain.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

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
BEGIN
    SELECT m.crm_user_id INTO v_mapped FROM public.user_identity_map m
    WHERE m.provider = v_provider AND m.external_id = v_external_id;
    IF v_mapped IS NULL AND v_email IS NOT NULL THEN
        SELECT u.id INTO v_mapped FROM public.users u WHERE crm_private.folded_email(u.email) = v_email AND u.active
        FOR KEY SHARE;
        IF FOUND THEN
            -- another request may map it at this moment: the map decides
            v_mapped := crm_private.map_identity(v_provider, v_external_id, v_mapped, v_mapped, 'email');
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

CREATE FUNCTION public.whoami(
    p_user_id uuid, p_order_id uuid DEFAULT NULL, OUT id uuid, OUT name text, OUT role text, OUT active boolean,
    OUT order_id uuid, OUT order_status text, OUT transitions jsonb
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_user public.users;
    v_order public.orders;
BEGIN
    -- not crm_private.actor: its lock is for calls that change something, and no replica could take it
    SELECT * INTO v_user FROM public.users u WHERE u.id = p_user_id AND u.active;
    IF NOT FOUND THEN
        PERFORM crm_private.not_an_actor(p_user_id);
    END IF;
    id := v_user.id;
    name := v_user.name;
    role := v_user.role;
    active := v_user.active;
    IF p_order_id IS NOT NULL THEN
        SELECT * INTO v_order FROM public.orders o WHERE o.id = p_order_id;
        IF NOT FOUND THEN
            PERFORM crm_private.not_found('orders', 'p_order_id', p_order_id);
        END IF;
        order_id := v_order.id;
        order_status := v_order.status;
        SELECT coalesce(
            jsonb_agg(
                jsonb_build_object(
                    'to_status', m.to_status, 'required_role', m.required_role, 'reason_required', m.reason_required
                )
                ORDER BY m.to_status
            ),
            '[]'
        )
        INTO transitions
        FROM crm_private.order_moves(v_order) m
        WHERE m.required_role <> 'admin' OR v_user.role = 'admin';
    END IF;
END
$$;
COMMENT ON FUNCTION public.whoami IS
    E'Returns the acting user, and with p_order_id the order''s status and the transitions that this user may make on '
    'it now.\n'
    'Rules: those of advance_order_status_safe; each transition is an object with to_status, required_role (manager '
    'means every active user) and reason_required; without p_order_id they are NULL. It only reads, so that it can be '
    'called by GET and on a replica; it locks nothing, so that the call that follows may still be refused, if somebody '
    'else was faster.\n'
    'Errors: 42501 p_user_id missing, unknown or inactive; PT404 no such order.';

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
    PERFORM crm_private.audit(v_actor.id, 'create', 'users', v_user.id, v_user);
    RETURN jsonb_build_object('id', v_user.id, 'name', v_user.name, 'email', v_user.email, 'role', v_user.role);
END
$$;
COMMENT ON FUNCTION public.create_user_safe IS
    E'Creates an active CRM user.\n'
    'Rules: admins only; the e-mail address is unique, regardless of case and surrounding blanks. For the very '
    'first admin, run crm-analytics crm create-admin.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 name blank, address or role not accepted; PT409 '
    'address taken.';

CREATE FUNCTION public.update_user_safe(
    p_crm_user_id uuid, p_user_id uuid, p_name text DEFAULT NULL, p_email text DEFAULT NULL,
    p_expected_version integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users;
    v_name text;
    v_email text;
    v_old public.users;
    v_new public.users;
    v_holder uuid;
BEGIN
    PERFORM crm_private.lock_user(p_crm_user_id, p_user_id);
    v_actor := crm_private.actor(p_user_id);
    PERFORM crm_private.required_id('p_crm_user_id', p_crm_user_id);
    v_name := crm_private.note('p_name', p_name);
    v_email := crm_private.email('p_email', p_email);
    v_old := crm_private.changeable_user(v_actor, p_crm_user_id, 'changing a user');
    PERFORM crm_private.check_version('users', v_old.id, v_old.version, p_expected_version);
    BEGIN
        UPDATE public.users u SET
            name = coalesce(v_name, u.name),
            email = coalesce(v_email, u.email)
        WHERE u.id = v_old.id RETURNING * INTO STRICT v_new;
    EXCEPTION WHEN unique_violation THEN
        SELECT u.id INTO v_holder FROM public.users u WHERE crm_private.folded_email(u.email) = v_email;
        PERFORM crm_private.conflict(
            'unique_email', 'another user has this e-mail address',
            jsonb_build_object(
                'field', 'p_email', 'found', v_email, 'accepted', 'an address that no user has', 'id', v_holder
            ),
            'Use another address, or give that user another one first (update_user_safe).'
        );
    END;
    PERFORM crm_private.audit_update(v_actor.id, 'users', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    RETURN jsonb_build_object(
        'id', v_new.id, 'name', v_new.name, 'email', v_new.email, 'role', v_new.role, 'active', v_new.active,
        'version', v_new.version
    );
END
$$;
COMMENT ON FUNCTION public.update_user_safe IS
    E'Changes a CRM user''s name or e-mail address.\n'
    'Rules: admins only; not the system user; NULL or blank arguments change nothing; the address is unique, '
    'regardless of case and surrounding blanks; mapped identities stay mapped.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 p_crm_user_id missing, name too long, address not '
    'accepted; PT404 no such user; PT409 address taken, the system user, user changed since p_expected_version.';

CREATE FUNCTION public.set_user_active_safe(p_crm_user_id uuid, p_active boolean, p_user_id uuid) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users;
    v_old public.users;
    v_new public.users;
BEGIN
    PERFORM crm_private.lock_user(p_crm_user_id, p_user_id);
    v_actor := crm_private.actor(p_user_id);
    PERFORM crm_private.required_id('p_crm_user_id', p_crm_user_id);
    IF p_active IS NULL THEN
        PERFORM crm_private.invalid('p_active', NULL, 'true or false');
    END IF;
    v_old := crm_private.changeable_user(v_actor, p_crm_user_id, 'activating or deactivating a user');
    PERFORM crm_private.not_oneself(v_actor, v_old, 'activity');
    IF v_old.active <> p_active THEN
        UPDATE public.users u SET active = p_active WHERE u.id = v_old.id RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(v_actor.id, 'users', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    END IF;
    RETURN jsonb_build_object('id', v_old.id, 'active', p_active);
END
$$;
COMMENT ON FUNCTION public.set_user_active_safe IS
    E'Activates or deactivates a CRM user.\n'
    'Rules: admins only; not oneself (so that an admin remains) and not the system user; a deactivation waits for the '
    'calls that the user has begun, and later ones are refused.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 an argument is missing; PT404 no such user; PT409 '
    'oneself or the system user.';

CREATE FUNCTION public.set_user_role_safe(p_crm_user_id uuid, p_role text, p_user_id uuid) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users;
    v_role text;
    v_old public.users;
    v_new public.users;
BEGIN
    PERFORM crm_private.lock_user(p_crm_user_id, p_user_id);
    v_actor := crm_private.actor(p_user_id);
    PERFORM crm_private.required_id('p_crm_user_id', p_crm_user_id);
    v_role := crm_private.label('p_role', p_role, 'public.user_role_enum', true);
    v_old := crm_private.changeable_user(v_actor, p_crm_user_id, 'changing a role');
    PERFORM crm_private.not_oneself(v_actor, v_old, 'role');
    IF v_old.role::text <> v_role THEN
        UPDATE public.users u SET role = v_role::public.user_role_enum WHERE u.id = v_old.id RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(v_actor.id, 'users', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    END IF;
    RETURN jsonb_build_object('id', v_old.id, 'role', v_role);
END
$$;
COMMENT ON FUNCTION public.set_user_role_safe IS
    E'Makes a CRM user a manager or an admin.\n'
    'Rules: admins only; not oneself (so that an admin remains) and not the system user; the change waits for the '
    'calls that the user has begun, and later ones have the new role.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 p_crm_user_id missing, unknown role; PT404 no such '
    'user; PT409 oneself or the system user.';

CREATE FUNCTION public.map_identity_safe(
    p_provider text, p_external_id text, p_crm_user_id uuid, p_user_id uuid
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id, p_assignee => p_crm_user_id);
    v_provider text := crm_private.short_text('p_provider', crm_private.required_text('p_provider', p_provider));
    v_external_id text := crm_private.short_text(
        'p_external_id', crm_private.required_text('p_external_id', p_external_id)
    );
    v_mapped uuid;
BEGIN
    PERFORM crm_private.required_id('p_crm_user_id', p_crm_user_id);
    PERFORM crm_private.assignee_exists('p_crm_user_id', p_crm_user_id);
    PERFORM crm_private.require_admin(v_actor, 'mapping an identity');
    PERFORM crm_private.assignee_active('p_crm_user_id', p_crm_user_id);
    v_mapped := crm_private.map_identity(v_provider, v_external_id, p_crm_user_id, v_actor.id, 'admin');
    IF v_mapped <> p_crm_user_id THEN
        PERFORM crm_private.conflict(
            'identity', 'this identity is mapped to another user',
            jsonb_build_object(
                'field', 'p_crm_user_id', 'found', p_crm_user_id, 'accepted', v_mapped, 'id', v_mapped
            ),
            'Unmap it from that user first (unmap_identity_safe), or use another identity.'
        );
    END IF;
    RETURN jsonb_build_object('id', p_crm_user_id, 'provider', v_provider, 'external_id', v_external_id);
END
$$;
COMMENT ON FUNCTION public.map_identity_safe IS
    E'Maps an identity provider''s account to a CRM user.\n'
    'Rules: admins only; a mapped identity is never mapped to another user unless it is unmapped first; repeating a '
    'mapping changes nothing.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 an argument is missing; PT404 no such user; PT409 '
    'user inactive or identity mapped to another.';

CREATE FUNCTION public.unmap_identity_safe(p_provider text, p_external_id text, p_user_id uuid) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users;
    v_provider text := crm_private.trimmed(p_provider);
    v_external_id text := crm_private.trimmed(p_external_id);
    v_mapped uuid;
    v_identity public.user_identity_map;
BEGIN
    SELECT m.crm_user_id INTO v_mapped FROM public.user_identity_map m
    WHERE m.provider = v_provider AND m.external_id = v_external_id;
    PERFORM crm_private.lock_user(v_mapped, p_user_id);
    v_actor := crm_private.actor(p_user_id);
    PERFORM crm_private.required_text('p_provider', p_provider);
    PERFORM crm_private.required_text('p_external_id', p_external_id);
    -- read again, now that its user is locked
    SELECT * INTO v_identity FROM public.user_identity_map m
    WHERE m.provider = v_provider AND m.external_id = v_external_id AND m.crm_user_id = v_mapped;
    IF NOT FOUND THEN
        PERFORM crm_private.refuse(
            'PT404', 'no user has this identity',
            jsonb_build_object(
                'rule', 'existence', 'entity', 'user_identity_map', 'field', 'p_external_id', 'found', v_external_id,
                'provider', v_provider, 'accepted', 'a mapped identity'
            ),
            'Table user_identity_map lists the identities.'
        );
    END IF;
    PERFORM crm_private.require_admin(v_actor, 'unmapping an identity');
    IF v_mapped = v_actor.id AND NOT EXISTS (
        SELECT FROM public.user_identity_map m
        WHERE m.crm_user_id = v_actor.id AND (m.provider, m.external_id) <> (v_provider, v_external_id)
    ) THEN
        PERFORM crm_private.conflict(
            'oneself', 'admins cannot unmap their own last identity',
            jsonb_build_object('field', 'p_external_id', 'found', v_external_id, 'accepted', 'another identity'),
            'Map another identity first (map_identity_safe), or ask another admin to do it.'
        );
    END IF;
    DELETE FROM public.user_identity_map m WHERE m.provider = v_provider AND m.external_id = v_external_id;
    PERFORM crm_private.audit(v_actor.id, 'unmap_identity', 'user_identity_map', v_mapped, v_identity);
    RETURN jsonb_build_object('id', v_mapped, 'provider', v_provider, 'external_id', v_external_id);
END
$$;
COMMENT ON FUNCTION public.unmap_identity_safe IS
    E'Takes an identity provider''s account from its CRM user.\n'
    'Rules: admins only; not one''s own last identity (so that an admin can still sign in); afterwards the identity '
    'can be mapped to any user, by an admin or by its e-mail address (resolve_crm_user).\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 provider or external id blank; PT404 the identity is '
    'mapped to nobody; PT409 one''s own last identity.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
