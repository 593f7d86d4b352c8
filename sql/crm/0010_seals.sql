-- Audit seals: a hash chain over audit_log (docs/decisions/audit-seals.md), and the audit of what the table owner
-- writes directly.

CREATE FUNCTION crm_private.audit_chain_hash(
    p_previous_hash text, p_after_id bigint, p_last_id bigint, OUT row_count bigint, OUT hash text
)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- per row first, so that many rows need 64 characters each and not all payloads at once
    SELECT
        count(*),
        encode(sha256(convert_to(p_previous_hash || coalesce(string_agg(r.hash, '' ORDER BY r.id), ''), 'UTF8')), 'hex')
    FROM (
        SELECT
            a.id,
            encode(sha256(convert_to(jsonb_build_array(
                a.id, a.actor_id, a.action, a.entity, a.entity_id, a.payload, a."session_user", a.transaction_id,
                to_char(a.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US')
            )::text, 'UTF8')), 'hex') AS hash
        FROM public.audit_log a
        WHERE a.id > p_after_id AND a.id <= p_last_id
    ) r
$$;
COMMENT ON FUNCTION crm_private.audit_chain_hash IS
    'Returns the hash of the audit rows with ids above p_after_id up to p_last_id, chained to the previous hash. '
    'Times are hashed in UTC.';

CREATE FUNCTION crm_private.lock_audit_log() RETURNS void
LANGUAGE sql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$ LOCK TABLE public.audit_log IN SHARE ROW EXCLUSIVE MODE $$;
COMMENT ON FUNCTION crm_private.lock_audit_log IS
    'Waits for the writers of audit_log and for another sealing, and blocks new ones. Runs as the owner, because '
    'crm_rpc may not change audit rows and therefore cannot lock them.';

CREATE FUNCTION crm_private.broken_seals() RETURNS TABLE (seq bigint, problem text)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT
        s.seq,
        CASE
            WHEN s.seq <> s.previous_seq + 1 THEN 'a seal is missing before this one'
            WHEN s.previous_hash <> s.chained_to THEN 'does not continue the seal before it'
            WHEN s.row_count <> h.row_count THEN format('sealed %s audit rows, %s are there', s.row_count, h.row_count)
            ELSE 'the audit rows it covers were changed'
        END
    FROM (
        SELECT
            a.*, lag(a.seq, 1, 0::bigint) OVER w AS previous_seq, lag(a.last_audit_id, 1, 0::bigint) OVER w AS after_id,
            lag(a.hash, 1, repeat('0', 64)) OVER w AS chained_to
        FROM public.audit_seals a
        WINDOW w AS (ORDER BY a.seq)
    ) s
    CROSS JOIN LATERAL crm_private.audit_chain_hash(s.previous_hash, s.after_id, s.last_audit_id) h
    WHERE s.seq <> s.previous_seq + 1 OR s.previous_hash <> s.chained_to
        OR s.row_count <> h.row_count OR s.hash <> h.hash
    ORDER BY s.seq
$$;
COMMENT ON FUNCTION crm_private.broken_seals IS
    'Returns the seals that no longer match the audit rows or each other. Only reads.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION crm_private.seal_audit_safe() RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
DECLARE
    v_last public.audit_seals;
    v_until bigint;
    v_rows bigint;
    v_hash text;
    v_sealed bigint := 0;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM crm_private.refuse(
            '25001', 'sealing runs at READ COMMITTED, not at ' || upper(current_setting('transaction_isolation')),
            jsonb_build_object(
                'rule', 'isolation', 'found', current_setting('transaction_isolation'), 'accepted', 'read committed'
            ),
            'Start the transaction with ISOLATION LEVEL READ COMMITTED.'
        );
    END IF;
    -- Ids are assigned before commit: without the lock a row with a smaller id could still appear below the seal.
    PERFORM crm_private.lock_audit_log();
    SELECT * INTO v_last FROM public.audit_seals s ORDER BY s.seq DESC LIMIT 1;
    LOOP
        SELECT max(a.id) INTO v_until
        FROM (
            SELECT l.id
            FROM public.audit_log l
            WHERE l.id > coalesce(v_last.last_audit_id, 0)
            ORDER BY l.id
            LIMIT 100000
        ) a;
        EXIT WHEN v_until IS NULL;
        SELECT h.row_count, h.hash INTO v_rows, v_hash
        FROM crm_private.audit_chain_hash(
            coalesce(v_last.hash, repeat('0', 64)), coalesce(v_last.last_audit_id, 0), v_until
        ) h;
        INSERT INTO public.audit_seals (seq, last_audit_id, row_count, previous_hash, hash)
        VALUES (coalesce(v_last.seq, 0) + 1, v_until, v_rows, coalesce(v_last.hash, repeat('0', 64)), v_hash)
        RETURNING * INTO v_last;
        v_sealed := v_sealed + v_rows;
    END LOOP;
    RETURN jsonb_build_object(
        'id', v_last.seq, 'hash', v_last.hash, 'last_audit_id', v_last.last_audit_id, 'row_count', v_sealed
    );
END
$$;
COMMENT ON FUNCTION crm_private.seal_audit_safe IS
    E'Seals the audit rows written since the last seal; returns the head of the chain and how many rows were sealed.\n'
    'Rules: writers of audit_log wait while it runs; it waits at most 5 seconds for them; if there is nothing new '
    'to seal, nothing changes.\n'
    'Errors: 55P03 audit_log stayed busy, try again; 25001 above READ COMMITTED.';

CREATE FUNCTION crm_private.audit_owner_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- the owner could attach this function to another table: it must not forge audit entries
    IF TG_TABLE_SCHEMA <> 'public' OR TG_TABLE_NAME NOT IN ('users', 'customers') THEN
        PERFORM crm_private.refuse(
            '42501', 'this trigger belongs to users and customers only',
            jsonb_build_object(
                'rule', 'guard', 'found', TG_TABLE_SCHEMA || '.' || TG_TABLE_NAME,
                'accepted', 'public.users, public.customers'
            ),
            'Drop the trigger.'
        );
    END IF;
    IF TG_OP = 'INSERT' THEN
        PERFORM crm_private.audit(NULL, 'create', TG_TABLE_NAME, NEW.id, to_jsonb(NEW));
    ELSE
        PERFORM crm_private.audit_update(NULL, TG_TABLE_NAME, NEW.id, to_jsonb(OLD), to_jsonb(NEW));
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION crm_private.audit_owner_write IS
    'Trigger: audits what the table owner inserts or updates in users and customers, with session_user and no '
    'actor.';

SELECT crm_private.close_functions('crm_private', ARRAY[crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
