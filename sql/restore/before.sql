-- Opens a freshly migrated CRM database for a data-only restore: takes the guards down and empties the tables. Runs in
-- one transaction with the data and after.sql, as the tables' owner or a superuser (docs/operations.md).

DO $$
DECLARE
    v_table regclass;
BEGIN
    -- in the order in which calls lock rows
    LOCK TABLE public.users, public.customer_contacts, public.customers, public.leads, public.orders
        IN SHARE ROW EXCLUSIVE MODE;
    FOR v_table IN
        SELECT c.oid::regclass FROM pg_catalog.pg_class c
        WHERE c.relkind = 'r'
            AND (c.oid IN (SELECT crm_private.tables()) OR c.relnamespace = 'crm_private'::regnamespace)
    LOOP
        EXECUTE format('ALTER TABLE %s DISABLE TRIGGER USER', v_table);
    END LOOP;
    -- nobody writes any more, because of the locks of those statements
    IF EXISTS (SELECT FROM public.customers)
        OR EXISTS (SELECT FROM public.leads)
        OR EXISTS (SELECT FROM public.orders)
        OR EXISTS (SELECT FROM public.users u WHERE u.id <> crm_private.system_user_id())
    THEN
        RAISE EXCEPTION 'this CRM database has rows, which a restore would replace'
            USING HINT = 'Restore into a new database: create it, then crm-analytics migrate crm.';
    END IF;
    -- the rows that the migrations wrote; the data brings its own
    EXECUTE (
        SELECT 'TRUNCATE ' || string_agg(c.oid::regclass::text, ', ')
        FROM pg_catalog.pg_class c
        WHERE c.relkind = 'r'
            AND (c.oid IN (SELECT crm_private.tables()) OR c.relnamespace = 'crm_private'::regnamespace)
    );
END
$$;
