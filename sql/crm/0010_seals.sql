-- The audit trail: where its rows come from, their order (positions), the hash chain over them (seals), and the change
-- feed: docs/decisions/audit-seals.md.
-- No search_path: the helpers here are like those of 0005.

-- the origin of audit rows -------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.audit_origin() RETURNS trigger
LANGUAGE plpgsql SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW."session_user" := SESSION_USER;
    NEW.transaction_id := pg_current_xact_id();
    NEW.client_address := inet_client_addr();
    NEW.application_name := current_setting('application_name');
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION crm_private.audit_origin IS
    'Trigger: every new audit row names the login, transaction, network address and application that wrote it, '
    'whatever the INSERT says.';

CREATE TRIGGER audit_origin BEFORE INSERT ON public.audit_log
FOR EACH ROW EXECUTE FUNCTION crm_private.audit_origin();
COMMENT ON TRIGGER audit_origin ON public.audit_log IS
    'The one trigger that is not ALWAYS: a data-only restore under session_replication_role = replica must bring '
    'audit rows back as they were, not in the name of the login that restores them.';

-- positions ----------------------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.payload_hash(p_salt bytea, p_payload jsonb, p_client_address inet) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT sha256(p_salt || convert_to(jsonb_build_array(p_payload, p_client_address)::text, 'UTF8')) $$;
COMMENT ON FUNCTION crm_private.payload_hash IS
    'Returns the hash of what an erasure may take from an audit row: its payload and its client address.';

-- the chain ----------------------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.audit_chain_hash(
    p_previous_hash text, p_after_position bigint, p_last_position bigint, OUT row_count bigint, OUT hash text
)
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- per row first, so that many rows need 64 characters each and not all of their texts at once
    SELECT
        count(*),
        encode(sha256(convert_to(
            p_previous_hash || coalesce(string_agg(r.hash, '' ORDER BY r."position"), ''), 'UTF8'
        )), 'hex')
    FROM (
        SELECT
            p."position",
            encode(sha256(convert_to(jsonb_build_array(
                p."position", a.id, a.actor_id, a.action, a.entity, a.entity_id, a."session_user", a.transaction_id,
                a.application_name, to_char(a.created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'),
                -- what was erased can no longer be hashed; the hash from before stays
                encode(coalesce(
                    crm_private.payload_hash(p.salt, a.payload, a.client_address), p.payload_hash
                ), 'hex')
            )::text, 'UTF8')), 'hex') AS hash
        FROM public.audit_positions p
        JOIN public.audit_log a ON a.id = p.audit_id
        WHERE p."position" > p_after_position AND p."position" <= p_last_position
    ) r
$$;
COMMENT ON FUNCTION crm_private.audit_chain_hash IS
    'Returns the hash of the audit rows with positions above p_after_position up to p_last_position, chained to the '
    'previous hash. Times are hashed in UTC.';

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
            a.*, lag(a.seq, 1, 0::bigint) OVER w AS previous_seq,
            lag(a.last_position, 1, 0::bigint) OVER w AS after_position,
            lag(a.hash, 1, repeat('0', 64)) OVER w AS chained_to
        FROM public.audit_seals a
        WINDOW w AS (ORDER BY a.seq)
    ) s
    CROSS JOIN LATERAL crm_private.audit_chain_hash(s.previous_hash, s.after_position, s.last_position) h
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

-- Order is given when rows are read, not when they are written: ids are drawn before commit, so a row with a smaller
-- id may appear late. Whoever numbers sees what is committed, and an open transaction delays its own rows only.
CREATE FUNCTION crm_private.number_changes(
    p_search_all boolean DEFAULT false, OUT numbered bigint, OUT last_position bigint
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_state crm_private.audit_numbering;
    v_seen bigint;
    v_transaction_id xid8;
    v_floor bigint;
    v_oldest xid8;
    v_next xid8;
BEGIN
    IF NOT crm_private.at_read_committed() THEN
        PERFORM crm_private.wrong_isolation('numbering runs');
    END IF;
    -- Transactions that drew an id up to v_seen began before this one, if this one gets its own id only afterwards.
    IF pg_current_xact_id_if_assigned() IS NULL THEN
        SELECT max(a.id) INTO v_seen FROM public.audit_log a;
        v_transaction_id := pg_current_xact_id();
    END IF;
    -- one at a time
    SELECT * INTO STRICT v_state FROM crm_private.audit_numbering n FOR NO KEY UPDATE;
    -- Read before the rows are: the statement that numbers sees all that older transactions have committed.
    SELECT pg_snapshot_xmin(s), pg_snapshot_xmax(s) INTO v_oldest, v_next FROM pg_current_snapshot() s;
    SELECT coalesce(max(p."position"), 0) INTO last_position FROM public.audit_positions p;
    v_floor := CASE WHEN p_search_all THEN 0 ELSE v_state.floor_id END;
    INSERT INTO public.audit_positions ("position", audit_id, salt, payload_hash)
    SELECT
        last_position + row_number() OVER (ORDER BY r.id), r.id, r.salt,
        crm_private.payload_hash(r.salt, r.payload, r.client_address)
    FROM (
        SELECT a.id, a.payload, a.client_address, crm_private.salt() AS salt
        FROM public.audit_log a
        WHERE a.id > v_floor
            AND NOT EXISTS (SELECT FROM public.audit_positions p WHERE p.audit_id = a.id AND p.audit_id > v_floor)
        OFFSET 0
    ) r;
    GET DIAGNOSTICS numbered = ROW_COUNT;
    last_position := last_position + numbered;
    -- A note from another server, which counts transactions anew after a restore, means nothing here.
    IF v_state.next_floor_transaction_id >= v_next THEN
        v_state.next_floor_id := NULL;
    ELSIF v_state.next_floor_transaction_id <= v_oldest THEN
        v_state.floor_id := greatest(v_state.floor_id, v_state.next_floor_id);
        v_state.next_floor_id := NULL;
    END IF;
    IF v_state.next_floor_id IS NULL THEN
        v_state.next_floor_id := CASE WHEN v_seen > v_state.floor_id THEN v_seen END;
        v_state.next_floor_transaction_id := CASE WHEN v_seen > v_state.floor_id THEN v_transaction_id END;
    END IF;
    UPDATE crm_private.audit_numbering n SET
        floor_id = v_state.floor_id, next_floor_id = v_state.next_floor_id,
        next_floor_transaction_id = v_state.next_floor_transaction_id
    WHERE (n.floor_id, n.next_floor_id, n.next_floor_transaction_id)
        IS DISTINCT FROM (v_state.floor_id, v_state.next_floor_id, v_state.next_floor_transaction_id);
END
$$;
COMMENT ON FUNCTION crm_private.number_changes IS
    E'Gives every committed audit row that has none the next position; returns how many it numbered, and the last '
    'position.\n'
    'Rules: calls wait for each other and for nobody else, and nobody waits for them; rows of a transaction that is '
    'still open are numbered after it ends; p_search_all also looks below the ids that are known to be numbered.\n'
    'Errors: 25001 above READ COMMITTED; 55P03 if the caller set lock_timeout.';

CREATE FUNCTION crm_private.seal_audit_safe() RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '5s'
AS $$
DECLARE
    v_last public.audit_seals;
    v_until bigint;
    v_end bigint;
    v_rows bigint;
    v_hash text;
    v_sealed bigint := 0;
BEGIN
    -- also the lock that keeps two sealings apart
    SELECT n.last_position INTO v_end FROM crm_private.number_changes(p_search_all => true) n;
    SELECT * INTO v_last FROM public.audit_seals s ORDER BY s.seq DESC LIMIT 1;
    WHILE coalesce(v_last.last_position, 0) < v_end LOOP
        v_until := least(coalesce(v_last.last_position, 0) + 100000, v_end);
        SELECT h.row_count, h.hash INTO v_rows, v_hash
        FROM crm_private.audit_chain_hash(
            coalesce(v_last.hash, repeat('0', 64)), coalesce(v_last.last_position, 0), v_until
        ) h;
        INSERT INTO public.audit_seals (seq, last_position, row_count, previous_hash, hash)
        VALUES (coalesce(v_last.seq, 0) + 1, v_until, v_rows, coalesce(v_last.hash, repeat('0', 64)), v_hash)
        RETURNING * INTO v_last;
        v_sealed := v_sealed + v_rows;
    END LOOP;
    RETURN jsonb_build_object(
        'id', v_last.seq, 'hash', v_last.hash, 'last_position', v_last.last_position, 'row_count', v_sealed
    );
END
$$;
COMMENT ON FUNCTION crm_private.seal_audit_safe IS
    E'Numbers the audit rows (number_changes) and seals those that no seal covers yet; returns the head of the chain '
    'and how many rows were sealed.\n'
    'Rules: nobody who writes waits for it, and it waits for no writer; if there is nothing new to seal, nothing '
    'changes.\n'
    'Errors: 55P03 another numbering or sealing took longer than 5 seconds; 25001 above READ COMMITTED.';

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
        PERFORM crm_private.audit(NULL, 'create', TG_TABLE_NAME, NEW.id, NEW);
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

CREATE FUNCTION public.changes_after(p_after bigint, p_limit integer DEFAULT 1000) RETURNS TABLE (
    "position" bigint, audit_id bigint, actor_id uuid, action text, entity text, entity_id uuid, payload jsonb,
    created_at timestamp with time zone, payload_hash text
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    IF p_after IS NULL OR p_after < 0 THEN
        PERFORM crm_private.invalid('p_after', p_after::text, 'the last position that was read, or 0');
    END IF;
    p_limit := coalesce(p_limit, 1000);
    IF p_limit NOT BETWEEN 1 AND 10000 THEN
        PERFORM crm_private.invalid('p_limit', p_limit::text, 'from 1 to 10000');
    END IF;
    RETURN QUERY
    SELECT
        p."position", a.id, a.actor_id, a.action, a.entity, a.entity_id, a.payload, a.created_at,
        encode(p.payload_hash, 'hex')
    FROM public.audit_positions p
    JOIN public.audit_log a ON a.id = p.audit_id
    WHERE p."position" > p_after
    ORDER BY p."position"
    LIMIT p_limit;
END
$$;
COMMENT ON FUNCTION public.changes_after IS
    E'Returns the changes after a position, in the order of their positions, which have no gaps.\n'
    'Rules: it only reads, so that it can be called by GET and on a replica; a change appears once '
    'crm_private.number_changes has given it its position; whoever reads keeps the last position together with what '
    'was done about the changes, in one transaction (docs/crm.md, Change feed). An erasure empties older changes, and '
    'is itself a change: erased.\n'
    'Errors: PT422 p_after below 0, p_limit not from 1 to 10000.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
