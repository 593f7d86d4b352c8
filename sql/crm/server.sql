-- What belongs to the server and is in no dump of this database: Grafana's role and its settings. Runs before the
-- migrations at every migrate, so that a restored or cloned database gets it back.

DO $$
DECLARE
    setting text;
    missing text;
BEGIN
    SELECT string_agg(r, ', ' ORDER BY r) INTO missing
    FROM unnest(ARRAY['crm_rpc', 'crm_app', 'grafana_reader']) r
    WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = r) AND to_regclass('reporting.audit_entries') IS NOT NULL;
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION 'this database was restored on a server without %, and has lost their privileges', missing
            USING HINT = 'Create them, then restore the dump into an empty database (docs/operations.md, Restore).';
    END IF;

    -- The analytics database creates this role too. An operator sets its password (docs/operations.md).
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'grafana_reader') THEN
        BEGIN
            CREATE ROLE grafana_reader LOGIN;
        EXCEPTION
            -- several databases may be migrated at once
            WHEN duplicate_object OR unique_violation THEN NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'the role grafana_reader does not exist, and % may not create it', current_user
                    USING HINT = 'Have an administrator run CREATE ROLE grafana_reader LOGIN, then migrate again.';
        END;
    END IF;
    BEGIN
        FOREACH setting IN ARRAY ARRAY[
            'default_transaction_read_only = on', 'statement_timeout = ''15s''', 'timezone = ''UTC''',
            'search_path = reporting'
        ] LOOP
            EXECUTE format('ALTER ROLE grafana_reader IN DATABASE %I SET %s', current_database(), setting);
        END LOOP;
    EXCEPTION WHEN insufficient_privilege THEN
        -- another login created the role, which can read no more than its grants allow, even without these settings
        RAISE WARNING 'could not set up the role grafana_reader: %', sqlerrm
            USING HINT = 'As an administrator of the server: crm-analytics grafana-reader';
    END;
END $$;
