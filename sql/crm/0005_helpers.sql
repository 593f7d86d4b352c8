-- Helpers that the RPCs share: each rule is written here once. They run with the caller's rights, so that they can do
-- nothing unless an RPC calls them.
-- No search_path: only crm_rpc may execute them, inside an RPC and with its path; a SET of their own costs a tenth of a
-- call.

CREATE FUNCTION crm_private.refuse(p_sqlstate text, p_message text, p_detail jsonb, p_hint text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = p_sqlstate, MESSAGE = p_message, DETAIL = p_detail::text, HINT = p_hint;
END
$$;
COMMENT ON FUNCTION crm_private.refuse IS
    'Ends a call with an error: SQLSTATE, message, machine-readable detail and remedy.';

-- actors and roles -----------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.at_read_committed() RETURNS boolean
LANGUAGE sql STABLE
AS $$ SELECT current_setting('transaction_isolation') = 'read committed' $$;
COMMENT ON FUNCTION crm_private.at_read_committed IS
    'Tells whether each statement sees what the lock that it waited for protects. At other isolation levels the '
    'snapshot may be older than the lock.';

CREATE FUNCTION crm_private.wrong_isolation(p_what text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM crm_private.refuse(
        '25001', format('%s at READ COMMITTED, not at %s', p_what, upper(current_setting('transaction_isolation'))),
        jsonb_build_object(
            'rule', 'isolation', 'found', current_setting('transaction_isolation'), 'accepted', 'read committed'
        ),
        'Start the transaction with ISOLATION LEVEL READ COMMITTED.'
    );
END
$$;
COMMENT ON FUNCTION crm_private.wrong_isolation IS 'Refuses (25001) a transaction that is not at_read_committed.';

CREATE FUNCTION crm_private.not_an_actor(p_user_id uuid) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM crm_private.refuse(
        '42501', 'the actor is not an active CRM user',
        jsonb_build_object(
            'rule', 'actor', 'field', 'p_user_id', 'found', p_user_id, 'accepted', 'id of an active row of users'
        ),
        'Pass the id that resolve_crm_user returned for the acting person.'
    );
END
$$;
COMMENT ON FUNCTION crm_private.not_an_actor IS 'Refuses (42501) an actor who is not an active user.';

CREATE FUNCTION crm_private.creator_missing(p_table text, p_column text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM crm_private.refuse(
        '23502', format('%s.%s is required: every new row must name its creator', p_table, p_column),
        jsonb_build_object(
            'rule', 'actor', 'table', p_table, 'field', p_column, 'found', NULL, 'accepted', 'id of a user'
        ),
        'Insert the row with the id of the acting user; only adopted rows have none.'
    );
END
$$;
COMMENT ON FUNCTION crm_private.creator_missing IS 'Refuses (23502) a new row that does not name its creator.';

CREATE FUNCTION crm_private.actor(
    p_user_id uuid, p_or_system boolean DEFAULT false, p_assignee uuid DEFAULT NULL
) RETURNS public.users
LANGUAGE plpgsql
AS $$
DECLARE
    v_id uuid := coalesce(p_user_id, CASE WHEN p_or_system THEN crm_private.system_user_id() END);
    v_user public.users;
BEGIN
    -- The rules read rows after waiting for a lock; an older snapshot would not see what the lock waited for.
    IF NOT crm_private.at_read_committed() THEN
        PERFORM crm_private.wrong_isolation('the RPCs run');
    END IF;
    IF p_assignee IS NOT NULL THEN
        PERFORM FROM public.users u WHERE u.id IN (v_id, p_assignee) ORDER BY u.id FOR KEY SHARE;
    END IF;
    -- Locked until commit: whoever takes this user's rights away (crm_private.lock_user) waits for this call, whatever
    -- it waits for itself. Without the lock a user deactivated in the meantime would still book.
    v_user := (SELECT u FROM public.users u WHERE u.id = v_id AND (u.active OR p_user_id IS NULL) FOR KEY SHARE);
    IF v_user.id IS NULL THEN
        PERFORM crm_private.not_an_actor(p_user_id);
    END IF;
    RETURN v_user;
END
$$;
COMMENT ON FUNCTION crm_private.actor IS
    'Returns the active user who acts; with p_or_system the system user if none is given. The row stays locked FOR KEY '
    'SHARE, so that nobody loses rights in the middle of a call, and so does that of the user who gets work: both in '
    'the order of their ids, before anything else is locked. Errors: 42501; 25001 above READ COMMITTED.';

CREATE FUNCTION crm_private.lock_user(p_crm_user_id uuid, p_user_id uuid) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- In id order, so that two admins who change each other wait instead of deadlocking. The admin's own row gets the
    -- lock of an actor: FOR UPDATE would also wait for the admin's other calls, which may be waiting for the user's
    -- row.
    IF p_user_id < p_crm_user_id THEN
        PERFORM FROM public.users u WHERE u.id = p_user_id FOR KEY SHARE;
    END IF;
    PERFORM FROM public.users u WHERE u.id = p_crm_user_id FOR UPDATE;
END
$$;
COMMENT ON FUNCTION crm_private.lock_user IS
    'Locks a user whom an admin changes, and the admin. Called before crm_private.actor: it waits for every call that '
    'the user has begun, and every later call waits for it.';

CREATE FUNCTION crm_private.require_admin(p_actor public.users, p_what text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_actor.role <> 'admin' THEN
        PERFORM crm_private.refuse(
            '42501', p_what || ' needs an admin',
            jsonb_build_object('rule', 'role', 'found', p_actor.role, 'accepted', 'admin', 'actor', p_actor.id),
            'Ask an admin to do it.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.require_admin IS 'Refuses (42501) everyone but admins.';

CREATE FUNCTION crm_private.require_admin_with_reason(
    p_actor public.users, p_reason text, p_rule text, p_what text, p_detail jsonb
) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_actor.role <> 'admin' THEN
        PERFORM crm_private.refuse(
            '42501', p_what || ' needs an admin',
            jsonb_build_object('rule', p_rule, 'found', p_actor.role, 'accepted', 'admin', 'actor', p_actor.id)
            || p_detail,
            'Ask an admin to do it, with p_reason.'
        );
    END IF;
    IF crm_private.trimmed(p_reason) IS NULL THEN
        PERFORM crm_private.conflict(
            p_rule, p_what || ' needs a reason',
            jsonb_build_object('field', 'p_reason', 'found', NULL, 'accepted', 'a reason') || p_detail,
            'Repeat the call with p_reason.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.require_admin_with_reason IS
    'Refuses everyone but admins (42501), and admins who give no reason (PT409).';

-- input ----------------------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.invalid(p_field text, p_found text, p_accepted text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    p_found := CASE WHEN length(p_found) > 200 THEN left(p_found, 200) || '…' ELSE p_found END;
    PERFORM crm_private.refuse(
        'PT422',
        CASE
            WHEN p_found IS NULL THEN p_field || ' is missing'
            ELSE format('%s: %L is not accepted', p_field, p_found)
        END,
        jsonb_build_object('rule', 'input', 'field', p_field, 'found', p_found, 'accepted', p_accepted),
        format('%s must be %s.', p_field, p_accepted)
    );
END
$$;
COMMENT ON FUNCTION crm_private.invalid IS
    'Refuses an argument: PT422 with field, found (the first 200 characters) and accepted.';

CREATE FUNCTION crm_private.label(p_field text, p_value text, p_type regtype, p_required boolean) RETURNS text
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF p_value IS NULL AND NOT p_required THEN
        RETURN NULL;
    END IF;
    -- an expression, because PostgreSQL would remember the type of a plain variable from the previous call
    IF p_value IS NULL OR NOT pg_input_is_valid(p_value, p_type::text) THEN
        PERFORM crm_private.invalid(
            p_field, p_value,
            'one of ' || (
                SELECT string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder)
                FROM pg_enum e
                WHERE e.enumtypid = p_type
            )
        );
    END IF;
    RETURN p_value;
END
$$;
COMMENT ON FUNCTION crm_private.label IS
    'Returns the text if it is a label of the enum; otherwise PT422 with the labels.';

CREATE FUNCTION crm_private.note(p_field text, p_value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
AS $$
DECLARE
    v_text text := crm_private.trimmed(p_value);
BEGIN
    IF octet_length(v_text) > 16384 THEN
        PERFORM crm_private.invalid(p_field, v_text, 'at most 16 KiB (16384 bytes in UTF-8)');
    END IF;
    RETURN v_text;
END
$$;
COMMENT ON FUNCTION crm_private.note IS
    'Returns the trimmed text (a note, a comment, a reason …), NULL if none is given; PT422 above 16 KiB.';

CREATE FUNCTION crm_private.required_text(p_field text, p_value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF crm_private.trimmed(p_value) IS NULL THEN
        PERFORM crm_private.invalid(p_field, p_value, 'a text that is not blank');
    END IF;
    RETURN crm_private.note(p_field, p_value);
END
$$;
COMMENT ON FUNCTION crm_private.required_text IS
    'Returns the trimmed text; PT422 if it is missing, blank or above 16 KiB.';

CREATE FUNCTION crm_private.required_id(p_field text, p_value uuid) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF p_value IS NULL THEN
        PERFORM crm_private.invalid(p_field, NULL, 'a uuid');
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.required_id IS 'Refuses a missing id: PT422.';

CREATE FUNCTION crm_private.short_text(p_field text, p_value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
AS $$
DECLARE
    v_text text := crm_private.trimmed(p_value);
BEGIN
    IF length(v_text) > 255 THEN
        PERFORM crm_private.invalid(p_field, v_text, 'at most 255 characters');
    END IF;
    RETURN v_text;
END
$$;
COMMENT ON FUNCTION crm_private.short_text IS
    'Returns the trimmed text, NULL if none is given; PT422 if it is too long for its index.';

CREATE FUNCTION crm_private.visible(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT string_agg(
        CASE
            WHEN c.letter <> ' ' AND crm_private.trimmed(c.letter) IS NULL
                THEN format('<U+%s>', regexp_replace(upper(lpad(to_hex(ascii(c.letter)), 8, '0')), '^0{1,4}', ''))
            ELSE c.letter
        END,
        '' ORDER BY c.place
    )
    FROM string_to_table(p_text, NULL) WITH ORDINALITY AS c (letter, place)
$$;
COMMENT ON FUNCTION crm_private.visible IS
    'The text with its invisible characters written as code points, for error messages.';

CREATE FUNCTION crm_private.reference(p_field text, p_value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT
AS $$
DECLARE
    v_key text := crm_private.reference_key(p_value);
    v_text text := crm_private.short_text(p_field, p_value);
BEGIN
    IF v_text IS NOT NULL AND v_key IS NULL THEN
        PERFORM crm_private.invalid(
            p_field, crm_private.visible(v_text),
            'without invisible characters or white space inside, except single spaces'
        );
    ELSIF length(v_key) > 255 THEN
        PERFORM crm_private.invalid(p_field, v_text, 'at most 255 characters');
    END IF;
    RETURN v_text;
END
$$;
COMMENT ON FUNCTION crm_private.reference IS
    'Returns the trimmed reference (a payment''s, an order number, an idempotency key), NULL if none is given; PT422 '
    'if it is too long or has white space or invisible characters inside.';

CREATE FUNCTION crm_private.is_email(p_text text) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$ SELECT p_text ~ replace('^[^@<>]+@[^@<>]+$', '<>', crm_private.blank_characters()) $$;
COMMENT ON FUNCTION crm_private.is_email IS
    'Tells whether a text is an e-mail address: one @, something on both sides of it, no white space.';

CREATE FUNCTION crm_private.email(p_field text, p_value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_email text := crm_private.folded_email(crm_private.short_text(p_field, p_value));
BEGIN
    IF NOT crm_private.is_email(v_email) THEN
        PERFORM crm_private.invalid(p_field, p_value, 'an e-mail address');
    END IF;
    RETURN v_email;
END
$$;
COMMENT ON FUNCTION crm_private.email IS 'Returns the folded address, NULL if none is given; PT422 if it is not one.';

CREATE FUNCTION crm_private.phone(p_field text, p_value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_phone text := crm_private.short_text(p_field, p_value);
BEGIN
    IF v_phone IS NOT NULL AND coalesce(length(crm_private.phone_digits(v_phone)), 0) < 5 THEN
        PERFORM crm_private.invalid(p_field, v_phone, 'a phone number (at least five digits)');
    END IF;
    RETURN v_phone;
END
$$;
COMMENT ON FUNCTION crm_private.phone IS
    'Returns the trimmed phone number, NULL if none is given; PT422 if it has fewer than five digits.';

CREATE FUNCTION crm_private.contact_kind(p_text text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN length(p_text) > 255 THEN NULL
        WHEN crm_private.is_email(p_text) THEN 'email'
        WHEN length(crm_private.phone_digits(p_text)) >= 7 AND regexp_replace(
            normalize(p_text, NFKC), '([дД][оО][бБ]|[eE][xX][tT])[. :]*[0-9]+$', ''
        ) ~ '^[0-9 ()+./-]+$' THEN 'phone'
    END
$$;
COMMENT ON FUNCTION crm_private.contact_kind IS
    'Tells whether free text is an e-mail address or a phone number (at least seven digits, perhaps with an '
    'extension).';

CREATE FUNCTION crm_private.contacts(
    p_phone text, p_email text, p_text text DEFAULT NULL, p_channel text DEFAULT NULL
) RETURNS TABLE (kind text, key text)
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_text text := crm_private.ascii_folded(p_text);
    v_in_link text := substring(
        v_text FROM '^(?:https?://)?(?:www[.])?(?:t|telegram)[.]me/([a-z][a-z0-9_]*)/?(?:[?].*)?$'
    );
    v_channel text := CASE WHEN v_in_link IS NULL THEN coalesce(p_channel, 'telegram') ELSE 'telegram' END;
BEGIN
    RETURN QUERY
    SELECT c.kind, c.key
    FROM (
        SELECT 'phone' AS kind, crm_private.phone_digits(p_phone) AS key
        UNION SELECT 'email', p_email
        UNION SELECT 'phone', crm_private.phone_digits(p_text) WHERE crm_private.contact_kind(p_text) = 'phone'
        UNION SELECT 'email', crm_private.folded_email(p_text) WHERE crm_private.contact_kind(p_text) = 'email'
        UNION SELECT v_channel, coalesce(v_in_link, substring(v_text FROM '^@([a-z0-9_.]+)$'))
        WHERE v_channel IN ('telegram', 'whatsapp')
    ) c
    -- adopted customers have other texts in these columns, too
    WHERE length(c.key) <= 255 AND CASE c.kind
        WHEN 'phone' THEN length(c.key) >= 5
        WHEN 'email' THEN crm_private.is_email(c.key)
        ELSE true
    END
    ORDER BY c.kind COLLATE "C", c.key COLLATE "C";
END
$$;
COMMENT ON FUNCTION crm_private.contacts IS
    'Returns the contacts of which a form or an edit speaks, in the order in which they are claimed. In free text a '
    'phone number, an e-mail address, @name (of the channel, telegram if none is given) and t.me/name are recognized; '
    'other text is nobody''s contact.';

CREATE FUNCTION crm_private.is_amount(p_value numeric, p_or_zero boolean DEFAULT false) RETURNS boolean
LANGUAGE sql IMMUTABLE
-- NaN is greater than every number
AS $$
    SELECT p_value >= CASE WHEN p_or_zero THEN 0 ELSE 0.01 END AND p_value < 10000000000 AND p_value = round(p_value, 2)
$$;
COMMENT ON FUNCTION crm_private.is_amount IS
    'Tells whether a number is positive, finite, below ten billions and has at most two decimals; NULL of NULL.';

CREATE FUNCTION crm_private.amount(p_field text, p_value numeric, p_or_zero boolean DEFAULT false) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF crm_private.is_amount(p_value, p_or_zero) IS NOT TRUE THEN
        PERFORM crm_private.invalid(
            p_field, p_value::text,
            CASE WHEN p_or_zero THEN 'zero or more' ELSE 'more than zero' END
                || ', below 10000000000, with at most two decimals'
        );
    END IF;
    RETURN p_value;
END
$$;
COMMENT ON FUNCTION crm_private.amount IS
    'Returns the amount if it is one (is_amount); otherwise PT422.';

CREATE FUNCTION crm_private.json_of_type(p_field text, p_value jsonb, p_type text) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF jsonb_typeof(p_value) <> p_type THEN
        PERFORM crm_private.invalid(p_field, p_value::text, 'a JSON ' || p_type);
    END IF;
    RETURN p_value;
END
$$;
COMMENT ON FUNCTION crm_private.json_of_type IS
    'Returns the JSON value, NULL if none is given; PT422 if it is not of this type (array, object).';

-- JSON and addresses, limited so that no row grows without bounds --------------------------------------------------

CREATE FUNCTION crm_private.snapshot(p_field text, p_value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF octet_length(p_value::text) > 262144 THEN
        PERFORM crm_private.invalid(p_field, left(p_value::text, 201), 'at most 256 KiB (262144 bytes) of JSON');
    END IF;
    RETURN p_value;
END
$$;
COMMENT ON FUNCTION crm_private.snapshot IS
    'Returns the JSON value as it is, NULL if none is given; PT422 above 256 KiB.';

CREATE FUNCTION crm_private.items(p_field text, p_value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_items jsonb := crm_private.snapshot(p_field, crm_private.json_of_type(p_field, p_value, 'array'));
    v_wrong jsonb;
BEGIN
    SELECT i.item INTO v_wrong
    FROM jsonb_array_elements(v_items) WITH ORDINALITY AS i (item, place)
    -- qty is compared in an expression of its own: a number only there, whatever the planner evaluates first
    WHERE jsonb_typeof(i.item) <> 'object' OR jsonb_typeof(i.item -> 'model') IS DISTINCT FROM 'string'
        OR crm_private.trimmed(i.item ->> 'model') IS NULL
        OR jsonb_typeof(i.item -> 'qty') IS DISTINCT FROM 'number'
        OR NOT CASE jsonb_typeof(i.item -> 'qty')
            WHEN 'number' THEN (i.item -> 'qty')::numeric >= 1 AND (i.item -> 'qty')::numeric % 1 = 0
            ELSE false
        END
    ORDER BY i.place
    LIMIT 1;
    IF FOUND THEN
        PERFORM crm_private.invalid(
            p_field, v_wrong::text,
            'a list of objects, each with model (a text that is not blank) and qty (a whole number, 1 or more)'
        );
    END IF;
    RETURN v_items;
END
$$;
COMMENT ON FUNCTION crm_private.items IS
    'Returns the list of items, NULL if none is given; PT422 unless it is [{model, qty, …}] and at most 256 KiB.';

CREATE FUNCTION crm_private.storage_address(p_field text, p_value text) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_address text := crm_private.required_text(p_field, p_value);
BEGIN
    -- a path has no scheme (a colon before the first slash), and does not start with //, which browsers take for a host
    IF octet_length(v_address) > 2048
        OR replace(v_address, ' ', '') ~ replace('[<>]', '<>', crm_private.blank_characters())
        OR NOT (v_address ~* '^(https|s3)://[^/ ]' OR v_address ~ '^/?[^/:]+(/|$)')
    THEN
        PERFORM crm_private.invalid(
            p_field, crm_private.visible(v_address),
            'an address that starts with https:// or s3://, or a path; at most 2048 bytes, without invisible '
            'characters or white space except spaces'
        );
    END IF;
    RETURN v_address;
END
$$;
COMMENT ON FUNCTION crm_private.storage_address IS
    'Returns the trimmed address of a stored file; PT422 unless it is https, s3 or a path.';

CREATE FUNCTION crm_private.cleared(
    p_clear text[], p_clearable text[], p_given jsonb
) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    v_field text;
BEGIN
    FOREACH v_field IN ARRAY coalesce(p_clear, '{}') LOOP
        IF v_field IS NULL OR v_field <> ALL (p_clearable) THEN
            PERFORM crm_private.invalid(
                'p_clear', v_field, 'fields that may be empty: ' || array_to_string(p_clearable, ', ')
            );
        ELSIF p_given -> v_field <> 'null' THEN
            PERFORM crm_private.invalid('p_clear', v_field, 'a field that the call gives no value: not p_' || v_field);
        END IF;
    END LOOP;
    RETURN coalesce(p_clear, '{}');
END
$$;
COMMENT ON FUNCTION crm_private.cleared IS
    'Returns the fields to be emptied, by the names of their arguments without p_; PT422 if one of them is required or '
    'unknown, or also given a value.';

-- existence and state --------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.not_found(p_entity text, p_field text, p_id uuid) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM crm_private.refuse(
        'PT404', format('%s: no row of %s has this id', p_field, p_entity),
        jsonb_build_object(
            'rule', 'existence', 'entity', p_entity, 'field', p_field, 'found', p_id,
            'accepted', 'id of a row of ' || p_entity
        ),
        'Check the id.'
    );
END
$$;
COMMENT ON FUNCTION crm_private.not_found IS 'Refuses an id that no row has: PT404.';

CREATE FUNCTION crm_private.conflict(p_rule text, p_message text, p_detail jsonb, p_hint text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM crm_private.refuse('PT409', p_message, jsonb_build_object('rule', p_rule) || p_detail, p_hint);
END
$$;
COMMENT ON FUNCTION crm_private.conflict IS 'Refuses what the current rows do not allow: PT409.';

CREATE FUNCTION crm_private.check_version(
    p_entity text, p_id uuid, p_version integer, p_expected_version integer
) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_expected_version <> p_version THEN
        PERFORM crm_private.conflict(
            'version',
            format('this row of %s was changed in the meantime: version %s, expected %s', p_entity, p_version,
                p_expected_version),
            jsonb_build_object(
                'field', 'p_expected_version', 'found', p_expected_version, 'accepted', p_version, 'entity', p_entity,
                'id', p_id
            ),
            format('Read the row again; then repeat the call with p_expected_version => %s, or without it.', p_version)
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_version IS
    'Refuses (PT409) to change a locked row that has another version than the caller has seen.';

CREATE FUNCTION crm_private.locked_order(p_order_id uuid) RETURNS public.orders
LANGUAGE plpgsql
AS $$
DECLARE
    v_order public.orders;
BEGIN
    -- Locked first, and not FOR UPDATE, which deadlocks with the foreign-key locks of child inserts. Read as one value,
    -- which takes a third of the time of as many columns.
    v_order := (SELECT o FROM public.orders o WHERE o.id = p_order_id FOR NO KEY UPDATE);
    IF v_order.id IS NULL THEN
        PERFORM crm_private.not_found('orders', 'p_order_id', p_order_id);
    END IF;
    RETURN v_order;
END
$$;
COMMENT ON FUNCTION crm_private.locked_order IS
    'Returns the order, locked until the transaction ends; PT404 if there is none.';

CREATE FUNCTION crm_private.locked_lead(p_lead_id uuid) RETURNS public.leads
LANGUAGE plpgsql
AS $$
DECLARE
    v_lead public.leads;
BEGIN
    SELECT * INTO v_lead FROM public.leads l WHERE l.id = p_lead_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('leads', 'p_lead_id', p_lead_id);
    END IF;
    RETURN v_lead;
END
$$;
COMMENT ON FUNCTION crm_private.locked_lead IS
    'Returns the lead, locked until the transaction ends; PT404 if there is none.';

CREATE FUNCTION crm_private.customer(p_field text, p_customer_id uuid) RETURNS public.customers
LANGUAGE plpgsql
AS $$
DECLARE
    v_id uuid;
    v_customer public.customers;
BEGIN
    -- first without a lock, so that no merged row is held while waiting for the one that it was merged into
    SELECT coalesce(c.merged_into, c.id) INTO v_id FROM public.customers c WHERE c.id = p_customer_id;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('customers', p_field, p_customer_id);
    END IF;
    LOOP
        SELECT * INTO STRICT v_customer FROM public.customers c WHERE c.id = v_id FOR KEY SHARE;
        EXIT WHEN v_customer.merged_into IS NULL;
        -- merged a moment ago
        v_id := v_customer.merged_into;
    END LOOP;
    RETURN v_customer;
END
$$;
COMMENT ON FUNCTION crm_private.customer IS
    'Returns the customer, or the one that it was merged into, locked against merges until the transaction ends; PT404 '
    'if there is none. Lock order: users, customer_contacts, customers, leads, orders.';

CREATE FUNCTION crm_private.claim_contact(p_kind text, p_key text, p_customer_id uuid) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
    v_holder uuid;
BEGIN
    LOOP
        INSERT INTO public.customer_contacts (kind, key, customer_id) VALUES (p_kind, p_key, p_customer_id)
        ON CONFLICT (kind, key) DO NOTHING;
        IF FOUND THEN
            RETURN p_customer_id;
        END IF;
        SELECT c.customer_id INTO v_holder FROM public.customer_contacts c WHERE c.kind = p_kind AND c.key = p_key;
        IF FOUND THEN
            RETURN v_holder;
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION crm_private.claim_contact IS
    'Gives a contact to a customer, unless a customer has it already; returns the customer who has it. Waits for a '
    'call that is claiming the same contact.';

CREATE FUNCTION crm_private.assignee_exists(p_field text, p_user_id uuid) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_user_id IS NOT NULL AND NOT EXISTS (SELECT FROM public.users u WHERE u.id = p_user_id) THEN
        PERFORM crm_private.not_found('users', p_field, p_user_id);
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.assignee_exists IS
    'Refuses to assign work to a user who does not exist: PT404. crm_private.actor has locked the row, so that nobody '
    'who is being deactivated gets work.';

CREATE FUNCTION crm_private.assignee_active(p_field text, p_user_id uuid) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM public.users u WHERE u.id = p_user_id AND NOT u.active) THEN
        PERFORM crm_private.conflict(
            'assignee', p_field || ': this user is inactive',
            jsonb_build_object('field', p_field, 'found', p_user_id, 'accepted', 'id of an active row of users'),
            'Choose an active user.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.assignee_active IS 'Refuses to assign work to an inactive user: PT409.';

CREATE FUNCTION crm_private.salt() RETURNS bytea
LANGUAGE sql VOLATILE
AS $$ SELECT uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) $$;
COMMENT ON FUNCTION crm_private.salt IS
    '32 bytes, of which 244 bits are random: what keeps a hash of personal data from being guessed.';

-- repeated calls ---------------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.first_result(p_function text, p_key text, p_request jsonb) RETURNS uuid
LANGUAGE plpgsql
AS $$
DECLARE
    v_key text := crm_private.reference_key(p_key);
    v_salt bytea;
    v_first crm_private.idempotency_keys;
BEGIN
    IF v_key IS NULL THEN
        RETURN NULL;
    END IF;
    v_salt := crm_private.salt();
    -- if the same call comes twice at once, the second waits here until the first has committed
    INSERT INTO crm_private.idempotency_keys (function, key, salt, request_hash)
    VALUES (p_function, v_key, v_salt, sha256(v_salt || convert_to(p_request::text, 'UTF8')))
    ON CONFLICT DO NOTHING;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    SELECT * INTO STRICT v_first FROM crm_private.idempotency_keys k WHERE k.function = p_function AND k.key = v_key;
    IF v_first.request_hash <> sha256(v_first.salt || convert_to(p_request::text, 'UTF8')) THEN
        PERFORM crm_private.conflict(
            'idempotency_key', 'this idempotency key belongs to a call with other arguments',
            jsonb_build_object(
                'field', 'p_idempotency_key', 'found', p_key, 'accepted', 'a key that no other call has',
                'id', v_first.result_id
            ),
            format('Repeat the first call of %s unchanged, or choose a new p_idempotency_key.', p_function)
        );
    END IF;
    RETURN v_first.result_id;
END
$$;
COMMENT ON FUNCTION crm_private.first_result IS
    'Claims an idempotency key for this call and returns NULL, also if none is given; or returns the row that the '
    'first call with this key made. PT409 if that call had other arguments. Called after the role checks, before the '
    'state is looked at; keep_result ends it.';

CREATE FUNCTION crm_private.keep_result(p_function text, p_key text, p_result_id uuid) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_key IS NOT NULL THEN
        UPDATE crm_private.idempotency_keys k SET result_id = p_result_id
        WHERE k.function = p_function AND k.key = crm_private.reference_key(p_key) AND k.result_id IS NULL;
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.keep_result IS 'Stores which row a call with an idempotency key made, if one is given.';

CREATE FUNCTION crm_private.order_result(p_order_id uuid, p_duplicate boolean) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_order public.orders;
BEGIN
    SELECT * INTO STRICT v_order FROM public.orders o WHERE o.id = p_order_id;
    RETURN jsonb_build_object(
        'id', v_order.id, 'duplicate', p_duplicate, 'order_code', v_order.order_code, 'status', v_order.status,
        'customer_id', v_order.customer_id, 'lead_id', v_order.lead_id, 'total_amount', v_order.total_amount,
        'currency', v_order.currency
    );
END
$$;
COMMENT ON FUNCTION crm_private.order_result IS
    'Returns the result of the calls that create an order: the order as it is now.';

CREATE FUNCTION crm_private.not_erased(p_field text, p_customer_id uuid) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM public.customer_erasures e WHERE e.customer_id = p_customer_id) THEN
        PERFORM crm_private.conflict(
            'erased', p_field || ': this customer''s personal data was erased',
            jsonb_build_object(
                'field', p_field, 'found', p_customer_id, 'accepted', 'a customer who was not erased',
                'id', p_customer_id
            ),
            'A customer who comes back is a new one: create_lead_safe.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.not_erased IS 'Refuses (PT409) to give an erased customer personal data again.';

-- traces ---------------------------------------------------------------------------------------------------

-- plpgsql, because a function in SQL would be planned again in every call
CREATE FUNCTION crm_private.audit(
    p_actor uuid, p_action text, p_entity text, p_entity_id uuid, p_row anyelement, p_detail jsonb DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    INSERT INTO public.audit_log (actor_id, action, entity, entity_id, payload)
    VALUES (
        p_actor, p_action, p_entity, p_entity_id,
        CASE
            WHEN p_detail IS NULL THEN jsonb_build_object('row', p_row)
            ELSE p_detail || jsonb_build_object('row', p_row)
        END
    );
END
$$;
COMMENT ON FUNCTION crm_private.audit IS
    'Writes one row of audit_log: the row after the change (a row of the table, or its JSON), and the details of the '
    'action.';

CREATE FUNCTION crm_private.audit_update(
    p_actor uuid, p_entity text, p_entity_id uuid, p_old jsonb, p_new jsonb, p_detail jsonb DEFAULT '{}'
) RETURNS void
LANGUAGE sql
AS $$
    SELECT crm_private.audit(
        p_actor, 'update', p_entity, p_entity_id, p_new,
        p_detail || jsonb_build_object('changes', (
            SELECT coalesce(
                jsonb_object_agg(n.key, jsonb_build_object('old', p_old -> n.key, 'new', n.value)), '{}'::jsonb
            )
            FROM jsonb_each(p_new) n
            WHERE n.key NOT IN ('updated_at', 'updated_by', 'version') AND n.value IS DISTINCT FROM p_old -> n.key
        ))
    )
$$;
COMMENT ON FUNCTION crm_private.audit_update IS
    'Audits an edited row, with changes: {column: {old, new}}, without updated_at, updated_by and version, and '
    'more details.';

CREATE FUNCTION crm_private.set_order_status(
    p_order_id uuid, p_new_status public.order_status_enum, p_actor uuid, p_reason text, p_notes text, p_detail jsonb
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_old public.order_status_enum;
    v_order public.orders;
BEGIN
    SELECT o.status INTO STRICT v_old FROM public.orders o WHERE o.id = p_order_id;
    UPDATE public.orders o SET status = p_new_status, updated_by = p_actor, updated_at = clock_timestamp()
    WHERE o.id = p_order_id RETURNING * INTO STRICT v_order;
    -- the order's time, which stands in its audit image too: an event whose time was changed differs from it
    INSERT INTO public.order_status_events (
        order_id, old_status, new_status, changed_by, seq, reason, notes, created_at
    )
    SELECT
        p_order_id, v_old::text, p_new_status::text, p_actor, coalesce(max(e.seq), 0) + 1, p_reason, p_notes,
        v_order.updated_at
    FROM public.order_status_events e WHERE e.order_id = p_order_id;
    PERFORM crm_private.audit(
        p_actor, 'status_change', 'orders', p_order_id, v_order,
        jsonb_build_object('old', v_old, 'new', p_new_status, 'reason', p_reason, 'notes', p_notes) || p_detail
    );
END
$$;
COMMENT ON FUNCTION crm_private.set_order_status IS
    'Moves a locked order: status, event with the next seq, audit. The only place that changes the status of an '
    'order.';

-- money --------------------------------------------------------------------------------------------------------
-- A reversal goes the other way than the payment that it takes back, and subtracts where that one adds.

-- returns a table, because only such a function in SQL becomes part of the statement that calls it
CREATE FUNCTION crm_private.client_money(
    p_order_id uuid, p_currency public.currency_enum
) RETURNS TABLE (paid numeric, refunded numeric, refunds_open numeric, net numeric)
LANGUAGE sql STABLE ROWS 1
AS $$
    SELECT
        coalesce(sum(CASE WHEN p.reverses IS NULL THEN p.amount ELSE -p.amount END)
            FILTER (WHERE p.role = 'client_payment' AND p.status = 'completed'), 0),
        coalesce(sum(CASE WHEN p.reverses IS NULL THEN p.amount ELSE -p.amount END)
            FILTER (WHERE p.role = 'refund' AND p.status = 'completed'), 0),
        coalesce(sum(p.amount) FILTER (WHERE p.role = 'refund' AND p.status IN ('planned', 'pending')), 0),
        -- paid less refunded; who needs no more has only this sum computed
        coalesce(sum(CASE p.direction WHEN 'incoming' THEN p.amount ELSE -p.amount END)
            FILTER (WHERE p.status = 'completed'), 0)
    FROM public.payments p
    WHERE p.order_id = p_order_id AND p.currency = p_currency AND p.amount <> 'NaN'
        AND p.role = CASE
            WHEN (p.direction = 'incoming') = (p.reverses IS NULL) THEN 'client_payment'::public.payment_role_enum
            ELSE 'refund'
        END
$$;
COMMENT ON FUNCTION crm_private.client_money IS
    'Returns an order''s client money in a currency: completed client payments, completed refunds, open refunds, and '
    'net client money; without what was reversed.';

CREATE FUNCTION crm_private.payouts(p_order_id uuid, p_currency public.currency_enum) RETURNS numeric
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_payouts numeric;
BEGIN
    SELECT coalesce(sum(CASE WHEN p.direction = 'outgoing' THEN p.amount ELSE -p.amount END), 0) INTO v_payouts
    FROM public.payments p
    WHERE p.order_id = p_order_id AND p.currency = p_currency AND p.amount <> 'NaN'
        AND p.role IN ('supplier_payment', 'shipping_payment', 'commission')
        -- what comes in is a reversed payout, or money back from a supplier, whose reversal goes out; other incoming
        -- money does not make room for payouts
        AND CASE
            WHEN p.direction = 'outgoing'
                THEN p.status IN ('planned', 'pending', 'completed')
                    AND (p.reverses IS NULL OR p.role = 'supplier_payment')
            ELSE p.status = 'completed' AND (p.reverses IS NOT NULL OR p.role = 'supplier_payment')
        END;
    RETURN v_payouts;
END
$$;
COMMENT ON FUNCTION crm_private.payouts IS
    'Returns an order''s payouts in a currency: supplier, shipping and commission; planned, pending and completed; '
    'less money back from suppliers; without what was reversed.';

CREATE FUNCTION crm_private.check_total(p_old public.orders, p_new public.orders) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_money record;
    v_least numeric;
BEGIN
    SELECT * INTO v_money FROM crm_private.client_money(p_old.id, p_old.currency);
    IF p_new.currency IS DISTINCT FROM p_old.currency AND (
        v_money.paid <> 0 OR v_money.refunded <> 0 OR EXISTS (
            SELECT FROM public.payments p
            WHERE p.order_id = p_old.id AND p.role IN ('client_payment', 'refund')
                AND p.status IN ('planned', 'pending')
        )
    ) THEN
        PERFORM crm_private.conflict(
            'currency', 'this order has client money in its currency',
            jsonb_build_object(
                'field', 'p_currency', 'found', p_new.currency, 'accepted', p_old.currency, 'id', p_old.id,
                'paid', v_money.paid, 'refunded', v_money.refunded
            ),
            'Reverse completed client payments and refunds (reverse_payment_safe), and cancel open ones, first.'
        );
    END IF;
    SELECT * INTO v_money FROM crm_private.client_money(p_new.id, p_new.currency);
    v_least := v_money.refunded + v_money.refunds_open + crm_private.payouts(p_new.id, p_new.currency);
    IF p_new.total_amount < v_least THEN
        PERFORM crm_private.conflict(
            'total_after_payment', 'more than this total was refunded or paid out',
            jsonb_build_object(
                'field', 'p_total_amount', 'found', p_new.total_amount, 'accepted', v_least, 'id', p_new.id,
                'refunded', v_money.refunded + v_money.refunds_open,
                'paid_out', crm_private.payouts(p_new.id, p_new.currency)
            ),
            'Pass a p_total_amount of at least the accepted amount.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_total IS
    'Refuses (PT409) a total below what was refunded or paid out (open refunds and payouts included), and another '
    'currency while there is client money, or an open client payment or refund, in the old one.';

-- an order's way ---------------------------------------------------------------------------------------------

CREATE FUNCTION crm_private.order_moves(p_order public.orders) RETURNS TABLE (
    to_status public.order_status_enum, required_role public.user_role_enum, reason_required boolean, rule text,
    what text, detail jsonb
)
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_transition public.order_status_transitions;
    v_money record;
BEGIN
    FOR v_transition IN
        SELECT * FROM public.order_status_transitions t WHERE t.from_status = p_order.status
    LOOP
        to_status := v_transition.to_status;
        required_role := v_transition.required_role;
        reason_required := false;
        rule := 'role';
        what := format('moving an order from %s to %s', p_order.status, to_status);
        detail := '{}';
        -- in every currency: adopted client money may be in another one than the order, which may have none
        IF to_status = 'cancelled' AND required_role <> 'admin' AND EXISTS (
            SELECT FROM (SELECT DISTINCT p.currency FROM public.payments p WHERE p.order_id = p_order.id) c
            CROSS JOIN LATERAL crm_private.client_money(p_order.id, c.currency) m
            WHERE m.paid > m.refunded
        ) THEN
            required_role := 'admin';
            what := 'canceling an order that holds client money';
        ELSIF to_status = 'in_delivery' THEN
            SELECT * INTO v_money FROM crm_private.client_money(p_order.id, p_order.currency);
            IF NOT coalesce(v_money.paid - v_money.refunded >= p_order.total_amount, false) THEN
                required_role := 'admin';
                reason_required := true;
                rule := 'delivery_after_payment';
                what := 'delivering an order that is not fully paid';
                detail := jsonb_build_object(
                    'id', p_order.id, 'total_amount', p_order.total_amount,
                    'client_paid', v_money.paid - v_money.refunded, 'currency', p_order.currency
                );
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION crm_private.order_moves IS
    'Returns where people may move an order from its status, by order_status_transitions and its client money: the '
    'role that it needs (manager means every active user), whether it needs a reason, and what a refusal says.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);
