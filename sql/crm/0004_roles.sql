-- Roles and table privileges, and the helpers by which later files restrict who may execute their functions.
-- All databases of a server share roles, so creating them must be harmless when they exist.
-- See docs/decisions/guards-by-role.md.

-- crm_rpc owns the RPCs and has the DML grants; crm_app may call them. Neither can log in. The members of crm_app are
-- those that CRM_APP_MEMBERS names; `crm-analytics migrate crm` grants it to them.
DO $$
DECLARE
    v_role text;
BEGIN
    FOREACH v_role IN ARRAY ARRAY['crm_rpc', 'crm_app'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = v_role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            -- another database of this server was migrated at the same moment
            NULL;
        END;
        IF EXISTS (
            SELECT FROM pg_catalog.pg_roles
            WHERE rolname = v_role
                AND (rolsuper OR rolcanlogin OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication)
        ) THEN
            RAISE EXCEPTION 'role % exists with attributes that break the guards', v_role
                USING HINT = format(
                    'As a superuser: ALTER ROLE %I '
                    'NOLOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB NOBYPASSRLS NOREPLICATION;',
                    v_role
                );
        END IF;
        IF NOT EXISTS (
            SELECT FROM pg_catalog.pg_roles WHERE rolname = CURRENT_USER AND rolsuper
            UNION ALL
            SELECT FROM pg_catalog.pg_auth_members m
            WHERE m.roleid = v_role::regrole AND m.member = CURRENT_USER::regrole AND m.admin_option
        ) THEN
            RAISE EXCEPTION 'role % exists and % may not administer it', v_role, CURRENT_USER
                USING HINT = format(
                    'All CRM databases of a server have one owner. Migrate as that login, or use a server of its own. '
                    'If no other database uses the role, as a superuser: '
                    'GRANT %I TO %I WITH ADMIN TRUE, SET FALSE, INHERIT FALSE;',
                    v_role, CURRENT_USER
                );
        END IF;
    END LOOP;
END
$$;

-- Drops all overloads of our names: a changed signature next to the old one would make calls ambiguous.
DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN
        SELECT p.oid::regprocedure FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace
            AND p.proname IN (
                'resolve_crm_user', 'create_lead_safe', 'advance_lead_status_safe', 'create_order_safe',
                'quick_order_safe', 'checkout_order_safe', 'record_generic_payment_safe', 'update_payment_status_safe',
                'advance_order_status_safe', 'attach_document_safe', 'replace_document_safe',
                'withdraw_document_safe', 'create_task_safe', 'update_task_safe',
                'upsert_shipment_safe', 'update_order_safe', 'update_lead_safe', 'update_customer_safe',
                'merge_customers_safe', 'create_user_safe', 'update_user_safe', 'set_user_active_safe',
                'set_user_role_safe', 'map_identity_safe', 'unmap_identity_safe', 'reverse_payment_safe',
                'changes_after', 'whoami', 'erase_customer_safe', 'find_customers_by_phone', 'find_customers_by_email',
                'find_customers_by_name', 'find_orders_by_code'
            )
    LOOP
        EXECUTE format('DROP ROUTINE %s', v_function);
    END LOOP;
END
$$;

-- Privileges -----------------------------------------------------------------------------------------------

-- Removes what broad or default grants gave to others, role by role, because default privileges are not PUBLIC's.
CREATE FUNCTION crm_private.revoke_others(p_keep text[]) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_grant record;
BEGIN
    FOR v_grant IN
        SELECT DISTINCT
            g.kind, g.object, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(r.rolname) END AS grantee
        FROM (
            SELECT
                CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, c.oid::regclass::text AS object,
                a.grantee, c.relowner AS owner
            FROM pg_class c
            CROSS JOIN LATERAL (
                SELECT x.grantee FROM aclexplode(c.relacl) x
                UNION
                SELECT x.grantee
                FROM pg_attribute t
                CROSS JOIN aclexplode(t.attacl) x
                WHERE t.attrelid = c.oid AND NOT t.attisdropped
            ) a
            WHERE c.relkind IN ('r', 'S', 'v') AND (
                c.relnamespace IN (to_regnamespace('crm_private'), to_regnamespace('reporting'))
                OR c.oid IN (SELECT crm_private.tables())
                OR c.relkind = 'v' AND c.relowner = CURRENT_USER::regrole AND EXISTS (
                    SELECT FROM pg_rewrite w
                    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
                    WHERE w.ev_class = c.oid AND d.refobjid IN (SELECT crm_private.tables())
                )
                OR c.oid IN (
                    SELECT d.objid
                    FROM pg_depend d
                    WHERE d.refobjid IN (SELECT crm_private.tables())
                        AND d.classid = 'pg_class'::regclass AND d.deptype = 'i'
                )
            )
            UNION ALL
            SELECT 'SCHEMA', n.nspname, a.grantee, n.nspowner
            FROM pg_namespace n
            CROSS JOIN aclexplode(n.nspacl) a
            WHERE n.nspname IN ('crm_private', 'reporting')
        ) g
        LEFT JOIN pg_roles r ON r.oid = g.grantee
        WHERE g.grantee <> g.owner AND (r.rolname IS NULL OR r.rolname <> ALL (p_keep))
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM %s CASCADE', v_grant.kind, v_grant.object, v_grant.grantee);
    END LOOP;
END
$$;
COMMENT ON FUNCTION crm_private.revoke_others IS
    'Revokes every privilege on the CRM tables, their sequences and views, crm_private and reporting from all but the '
    'owner and these roles.';

CREATE FUNCTION crm_private.tables() RETURNS SETOF regclass
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT ('public.' || t)::regclass
    FROM unnest(ARRAY[
        'users', 'customers', 'leads', 'orders', 'payments', 'documents', 'tasks', 'shipments', 'order_status_events',
        'audit_log', 'audit_positions', 'audit_seals', 'customer_erasures', 'user_identity_map',
        'order_status_transitions', 'customer_contacts', 'payout_limits'
    ]) t
$$;
COMMENT ON FUNCTION crm_private.tables IS 'The CRM tables, for privileges, policies and guards.';

SELECT crm_private.revoke_others(ARRAY[]::text[]);

GRANT USAGE ON SCHEMA public TO crm_rpc, crm_app;
GRANT USAGE ON SCHEMA crm_private TO crm_rpc;
GRANT USAGE ON SEQUENCE crm_private.order_code_seq TO crm_rpc;

-- What the RPCs need and nothing more: no DELETE but that of identities, and no UPDATE of append-only tables.
GRANT SELECT, INSERT, UPDATE
    ON public.customers, public.leads, public.orders, public.tasks, public.shipments TO crm_rpc;
GRANT SELECT, INSERT, UPDATE (name, email, role, active) ON public.users TO crm_rpc;
GRANT SELECT, INSERT, UPDATE (customer_id) ON public.customer_contacts TO crm_rpc;
GRANT SELECT, INSERT, DELETE ON public.user_identity_map TO crm_rpc;
GRANT SELECT, INSERT, UPDATE (status, external_reference, reference_key, updated_at) ON public.payments TO crm_rpc;
GRANT SELECT, INSERT, UPDATE (withdrawn_at) ON public.documents TO crm_rpc;
GRANT SELECT, INSERT ON public.order_status_events, public.audit_log, public.audit_positions, public.audit_seals,
    public.customer_erasures TO crm_rpc;
-- for erasures, and nothing else: the guards allow no other change
GRANT UPDATE (payload, client_address) ON public.audit_log TO crm_rpc;
GRANT UPDATE (salt) ON public.audit_positions TO crm_rpc;
GRANT UPDATE (reason, notes) ON public.order_status_events TO crm_rpc;
GRANT UPDATE (file_url) ON public.documents TO crm_rpc;
GRANT UPDATE (key) ON public.customer_contacts TO crm_rpc;
GRANT SELECT, UPDATE ON crm_private.audit_numbering TO crm_rpc;
GRANT SELECT ON public.order_status_transitions, public.payout_limits TO crm_rpc;
GRANT SELECT, INSERT, UPDATE (result_id, salt, request_hash) ON crm_private.idempotency_keys TO crm_rpc;
-- crm_app may only read the tables: 0050 grants that together with the policies.

-- Creating functions as crm_rpc ------------------------------------------------------------------------------

CREATE FUNCTION crm_private.close_functions(p_schema text, p_grantees text[]) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_function record;
    v_grantee text;
BEGIN
    FOR v_function IN
        SELECT p.oid, p.oid::regprocedure AS signature, p.proowner FROM pg_proc p
        WHERE p.proowner = CURRENT_USER::regrole AND p.pronamespace = p_schema::regnamespace
    LOOP
        FOR v_grantee IN
            SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
            FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
            WHERE p.oid = v_function.oid AND a.grantee <> p.proowner
        LOOP
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', v_function.signature, v_grantee);
        END LOOP;
        FOREACH v_grantee IN ARRAY p_grantees LOOP
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', v_function.signature, v_grantee);
        END LOOP;
    END LOOP;
END
$$;
COMMENT ON FUNCTION crm_private.close_functions IS
    'Leaves EXECUTE on the current role''s functions in a schema to these roles only, whatever default privileges '
    'granted.';

CREATE FUNCTION crm_private.owner() RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = 'public.orders'::regclass $$;
COMMENT ON FUNCTION crm_private.owner IS 'The owner of the CRM tables: the migrating login.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);
