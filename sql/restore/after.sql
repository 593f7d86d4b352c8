-- Closes the CRM database again after a data-only restore: every guard is back as it was (see before.sql).

-- a table whose deferred keys are still to be checked cannot be altered
SET CONSTRAINTS ALL IMMEDIATE;

DO $$
DECLARE
    v_trigger record;
BEGIN
    FOR v_trigger IN
        SELECT t.tgrelid::regclass AS tab, t.tgname AS name,
            -- the one trigger that is not ALWAYS
            CASE WHEN t.tgname = 'audit_origin' THEN 'ENABLE' ELSE 'ENABLE ALWAYS' END AS state
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        WHERE NOT t.tgisinternal
            AND (c.oid IN (SELECT crm_private.tables()) OR c.relnamespace = 'crm_private'::regnamespace)
    LOOP
        EXECUTE format('ALTER TABLE %s %s TRIGGER %I', v_trigger.tab, v_trigger.state, v_trigger.name);
    END LOOP;
END
$$;
