-- RPCs for the work on an order: documents, tasks, shipments.

-- The rules that replacing and withdrawing a document share. They run with the caller's rights.
-- No search_path: they are helpers like those of 0005.

CREATE FUNCTION crm_private.locked_document(p_document_id uuid) RETURNS public.documents
LANGUAGE plpgsql
AS $$
DECLARE
    v_document public.documents;
BEGIN
    SELECT * INTO v_document FROM public.documents d WHERE d.id = p_document_id;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('documents', 'p_document_id', p_document_id);
    END IF;
    IF v_document.order_id IS NOT NULL THEN
        PERFORM crm_private.locked_order(v_document.order_id);
    END IF;
    -- an erasure locks the lead before its documents
    PERFORM FROM public.leads l WHERE l.id = v_document.lead_id FOR KEY SHARE;
    SELECT * INTO STRICT v_document FROM public.documents d WHERE d.id = p_document_id FOR NO KEY UPDATE;
    RETURN v_document;
END
$$;
COMMENT ON FUNCTION crm_private.locked_document IS
    'Returns the document, locked after its order and its lead until the transaction ends; PT404 if there is none.';

CREATE FUNCTION crm_private.require_current_document(p_document public.documents) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_successor uuid := (SELECT d.id FROM public.documents d WHERE d.replaces = p_document.id);
BEGIN
    IF v_successor IS NOT NULL OR p_document.withdrawn_at IS NOT NULL THEN
        PERFORM crm_private.conflict(
            'document_over',
            'this document was ' || CASE WHEN v_successor IS NULL THEN 'withdrawn' ELSE 'replaced' END || ' already',
            jsonb_build_object(
                'field', 'p_document_id', 'found', p_document.id, 'accepted', 'a document that counts',
                'id', p_document.id, 'replaced_by', v_successor, 'withdrawn_at', p_document.withdrawn_at
            ),
            CASE
                WHEN v_successor IS NULL THEN 'Attach the new file with attach_document_safe.'
                ELSE 'Pass the id of the newest document to replace_document_safe or withdraw_document_safe.'
            END
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.require_current_document IS
    'Refuses (PT409) a document that was replaced or withdrawn.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.attach_document_safe(
    p_document_type text, p_storage_url text, p_uploaded_by uuid, p_order_id uuid DEFAULT NULL,
    p_lead_id uuid DEFAULT NULL, p_idempotency_key text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_uploaded_by);
    v_type text := crm_private.label('p_document_type', p_document_type, 'public.document_type_enum', true);
    v_url text := crm_private.storage_address('p_storage_url', p_storage_url);
    v_key text := crm_private.reference('p_idempotency_key', p_idempotency_key);
    v_first uuid;
    v_document public.documents;
BEGIN
    IF p_order_id IS NULL AND p_lead_id IS NULL THEN
        PERFORM crm_private.invalid('p_order_id', NULL, 'given, or else p_lead_id');
    END IF;
    IF p_order_id IS NOT NULL THEN
        PERFORM crm_private.locked_order(p_order_id);
    END IF;
    IF p_lead_id IS NOT NULL AND NOT EXISTS (SELECT FROM public.leads l WHERE l.id = p_lead_id) THEN
        PERFORM crm_private.not_found('leads', 'p_lead_id', p_lead_id);
    END IF;
    v_first := crm_private.first_result(
        'attach_document_safe', v_key,
        jsonb_build_object('type', v_type, 'url', v_url, 'order_id', p_order_id, 'lead_id', p_lead_id)
    );
    IF v_first IS NOT NULL THEN
        SELECT * INTO STRICT v_document FROM public.documents d WHERE d.id = v_first;
        RETURN jsonb_build_object(
            'id', v_document.id, 'duplicate', true, 'order_id', v_document.order_id, 'lead_id', v_document.lead_id
        );
    END IF;
    INSERT INTO public.documents (order_id, lead_id, type, file_url, uploaded_by)
    VALUES (p_order_id, p_lead_id, v_type::public.document_type_enum, v_url, v_actor.id) RETURNING * INTO v_document;
    PERFORM crm_private.audit(v_actor.id, 'create', 'documents', v_document.id, v_document);
    PERFORM crm_private.keep_result('attach_document_safe', v_key, v_document.id);
    RETURN jsonb_build_object(
        'id', v_document.id, 'duplicate', false, 'order_id', v_document.order_id, 'lead_id', v_document.lead_id
    );
END
$$;
COMMENT ON FUNCTION public.attach_document_safe IS
    E'Attaches an uploaded file to an order or a lead.\n'
    'Rules: any active user; an order or a lead is required; the file is in the storage already, only its address '
    'is kept here: https://…, s3://… or a path; a repeated p_idempotency_key with the same arguments returns the '
    'first document as it is now, with duplicate true.\n'
    'Errors: 42501 uploader unknown or inactive; PT422 unknown type, address not accepted, neither order nor lead, '
    'idempotency key not accepted; PT404 no such order or lead; PT409 idempotency key of other arguments.';

CREATE FUNCTION public.replace_document_safe(
    p_document_id uuid, p_storage_url text, p_user_id uuid, p_document_type text DEFAULT NULL,
    p_reason text DEFAULT NULL, p_expected_version integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_url text := crm_private.storage_address('p_storage_url', p_storage_url);
    v_type text := crm_private.label('p_document_type', p_document_type, 'public.document_type_enum', false);
    v_reason text := crm_private.note('p_reason', p_reason);
    v_old public.documents;
    v_new public.documents;
BEGIN
    PERFORM crm_private.required_id('p_document_id', p_document_id);
    v_old := crm_private.locked_document(p_document_id);
    PERFORM crm_private.check_version('documents', v_old.id, v_old.version, p_expected_version);
    PERFORM crm_private.require_current_document(v_old);
    INSERT INTO public.documents (order_id, lead_id, type, file_url, uploaded_by, replaces)
    VALUES (
        v_old.order_id, v_old.lead_id, coalesce(v_type::public.document_type_enum, v_old.type), v_url, v_actor.id,
        v_old.id
    )
    RETURNING * INTO v_new;
    PERFORM crm_private.audit(
        v_actor.id, 'create', 'documents', v_new.id, v_new, jsonb_build_object('reason', v_reason)
    );
    RETURN jsonb_build_object(
        'id', v_new.id, 'replaces', v_old.id, 'order_id', v_new.order_id, 'lead_id', v_new.lead_id
    );
END
$$;
COMMENT ON FUNCTION public.replace_document_safe IS
    E'Attaches a new file in the place of a document, which stays visible as history.\n'
    'Rules: any active user; the new document belongs to the same order or lead, and has the same type unless '
    'another one is given; each document is replaced once. The result''s id is the new document''s.\n'
    'Errors: 42501 actor unknown or inactive; PT422 address or type not accepted, reason too long; PT404 no such '
    'document; PT409 document replaced or withdrawn already, or changed since p_expected_version.';

CREATE FUNCTION public.withdraw_document_safe(
    p_document_id uuid, p_user_id uuid, p_reason text, p_expected_version integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_reason text := crm_private.required_text('p_reason', p_reason);
    v_document public.documents;
BEGIN
    PERFORM crm_private.required_id('p_document_id', p_document_id);
    v_document := crm_private.locked_document(p_document_id);
    PERFORM crm_private.check_version('documents', v_document.id, v_document.version, p_expected_version);
    PERFORM crm_private.require_current_document(v_document);
    UPDATE public.documents d SET withdrawn_at = clock_timestamp()
    WHERE d.id = v_document.id RETURNING * INTO v_document;
    PERFORM crm_private.audit(
        v_actor.id, 'withdraw', 'documents', v_document.id, v_document,
        jsonb_build_object('reason', v_reason)
    );
    RETURN jsonb_build_object(
        'id', v_document.id, 'order_id', v_document.order_id, 'lead_id', v_document.lead_id,
        'withdrawn_at', v_document.withdrawn_at, 'version', v_document.version
    );
END
$$;
COMMENT ON FUNCTION public.withdraw_document_safe IS
    E'Withdraws a document: it no longer counts, and stays visible as history.\n'
    'Rules: any active user, with a reason, which stands in the audit log; the file itself stays in the storage.\n'
    'Errors: 42501 actor unknown or inactive; PT422 reason blank or too long; PT404 no such document; PT409 '
    'document replaced or withdrawn already, or changed since p_expected_version.';

CREATE FUNCTION public.create_task_safe(
    p_title text, p_created_by uuid, p_order_id uuid DEFAULT NULL, p_lead_id uuid DEFAULT NULL,
    p_description text DEFAULT NULL, p_assignee_id uuid DEFAULT NULL, p_due_at timestamptz DEFAULT NULL,
    p_idempotency_key text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_created_by, p_assignee => p_assignee_id);
    v_title text := crm_private.required_text('p_title', p_title);
    v_description text := crm_private.note('p_description', p_description);
    v_key text := crm_private.reference('p_idempotency_key', p_idempotency_key);
    v_first uuid;
    v_task public.tasks;
BEGIN
    IF NOT isfinite(p_due_at) THEN
        PERFORM crm_private.invalid('p_due_at', p_due_at::text, 'a finite time');
    END IF;
    IF p_order_id IS NOT NULL THEN
        PERFORM crm_private.locked_order(p_order_id);
    END IF;
    IF p_lead_id IS NOT NULL AND NOT EXISTS (SELECT FROM public.leads l WHERE l.id = p_lead_id) THEN
        PERFORM crm_private.not_found('leads', 'p_lead_id', p_lead_id);
    END IF;
    PERFORM crm_private.assignee_exists('p_assignee_id', p_assignee_id);
    v_first := crm_private.first_result(
        'create_task_safe', v_key,
        jsonb_build_object(
            'title', v_title, 'order_id', p_order_id, 'lead_id', p_lead_id,
            'description', crm_private.trimmed(p_description), 'assignee_id', p_assignee_id,
            'due_at', p_due_at AT TIME ZONE 'UTC'
        )
    );
    IF v_first IS NOT NULL THEN
        SELECT * INTO STRICT v_task FROM public.tasks t WHERE t.id = v_first;
        RETURN jsonb_build_object('id', v_task.id, 'duplicate', true, 'status', v_task.status);
    END IF;
    PERFORM crm_private.assignee_active('p_assignee_id', p_assignee_id);
    INSERT INTO public.tasks (order_id, lead_id, title, description, due_at, assigned_to, created_by, completed)
    VALUES (
        p_order_id, p_lead_id, v_title, v_description, p_due_at, p_assignee_id, v_actor.id, false
    )
    RETURNING * INTO v_task;
    PERFORM crm_private.audit(v_actor.id, 'create', 'tasks', v_task.id, v_task);
    PERFORM crm_private.keep_result('create_task_safe', v_key, v_task.id);
    RETURN jsonb_build_object('id', v_task.id, 'duplicate', false, 'status', v_task.status);
END
$$;
COMMENT ON FUNCTION public.create_task_safe IS
    E'Creates an open task, for an order, a lead or neither.\n'
    'Rules: any active user; the assignee, if given, is active; a repeated p_idempotency_key with the same arguments '
    'returns the first task as it is now, with duplicate true.\n'
    'Errors: 42501 creator unknown or inactive; PT422 title blank or too long, description too long, due time '
    'infinite, idempotency key not accepted; PT404 no such order, lead or assignee; PT409 idempotency key of other '
    'arguments, assignee inactive.';

CREATE FUNCTION public.update_task_safe(
    p_task_id uuid, p_user_id uuid, p_completed boolean DEFAULT NULL, p_title text DEFAULT NULL,
    p_description text DEFAULT NULL, p_assignee_id uuid DEFAULT NULL, p_due_at timestamptz DEFAULT NULL,
    p_expected_version integer DEFAULT NULL, p_clear text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id, p_assignee => p_assignee_id);
    v_clear text[] := crm_private.cleared(
        p_clear, '{description, assignee_id, due_at}',
        jsonb_build_object('description', p_description, 'assignee_id', p_assignee_id, 'due_at', p_due_at)
    );
    v_title text := crm_private.note('p_title', p_title);
    v_description text := crm_private.note('p_description', p_description);
    v_old public.tasks;
    v_new public.tasks;
BEGIN
    PERFORM crm_private.required_id('p_task_id', p_task_id);
    IF NOT isfinite(p_due_at) THEN
        PERFORM crm_private.invalid('p_due_at', p_due_at::text, 'a finite time');
    END IF;
    SELECT * INTO v_old FROM public.tasks t WHERE t.id = p_task_id FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('tasks', 'p_task_id', p_task_id);
    END IF;
    PERFORM crm_private.assignee_exists('p_assignee_id', p_assignee_id);
    PERFORM crm_private.check_version('tasks', v_old.id, v_old.version, p_expected_version);
    PERFORM crm_private.assignee_active('p_assignee_id', p_assignee_id);
    UPDATE public.tasks t SET
        completed = coalesce(p_completed, t.completed),
        title = coalesce(v_title, t.title),
        description = coalesce(v_description, CASE WHEN 'description' <> ALL (v_clear) THEN t.description END),
        assigned_to = coalesce(p_assignee_id, CASE WHEN 'assignee_id' <> ALL (v_clear) THEN t.assigned_to END),
        due_at = coalesce(p_due_at, CASE WHEN 'due_at' <> ALL (v_clear) THEN t.due_at END)
    WHERE t.id = v_old.id RETURNING * INTO v_new;
    PERFORM crm_private.audit_update(v_actor.id, 'tasks', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    RETURN jsonb_build_object('id', v_new.id, 'status', v_new.status, 'version', v_new.version);
END
$$;
COMMENT ON FUNCTION public.update_task_safe IS
    E'Completes, reopens or changes a task.\n'
    'Rules: any active user; NULL or blank arguments change nothing; status follows completed; p_clear empties fields '
    '(description, assignee_id, due_at).\n'
    'Errors: 42501 actor unknown or inactive; PT422 p_task_id missing, title or description too long, due time '
    'infinite, a field of p_clear required, unknown or also given; PT404 no such task or assignee; PT409 assignee '
    'inactive, task changed since p_expected_version.';

CREATE FUNCTION public.upsert_shipment_safe(
    p_order_id uuid, p_user_id uuid, p_shipment_id uuid DEFAULT NULL, p_provider text DEFAULT NULL,
    p_tracking_number text DEFAULT NULL, p_status text DEFAULT NULL, p_estimated_delivery_date date DEFAULT NULL,
    p_warehouse_received boolean DEFAULT NULL, p_warehouse_photos_received boolean DEFAULT NULL,
    p_client_received boolean DEFAULT NULL, p_ruspost_status jsonb DEFAULT NULL,
    p_ruspost_last_update timestamptz DEFAULT NULL, p_expected_version integer DEFAULT NULL,
    p_clear text[] DEFAULT '{}'
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_provider text := crm_private.label('p_provider', p_provider, 'public.shipment_provider_enum', false);
    v_tracking text := crm_private.short_text('p_tracking_number', p_tracking_number);
    v_clear text[] := crm_private.cleared(
        p_clear, '{tracking_number, estimated_delivery_date, ruspost_status, ruspost_last_update}',
        jsonb_build_object(
            'tracking_number', p_tracking_number, 'estimated_delivery_date', p_estimated_delivery_date,
            'ruspost_status', p_ruspost_status, 'ruspost_last_update', p_ruspost_last_update
        )
    );
    v_ruspost_status jsonb := crm_private.snapshot('p_ruspost_status', p_ruspost_status);
    -- an answer without its time came now
    v_ruspost_update timestamptz := coalesce(
        p_ruspost_last_update, CASE WHEN p_ruspost_status IS NOT NULL THEN clock_timestamp() END
    );
    v_old public.shipments;
    v_new public.shipments;
BEGIN
    PERFORM crm_private.required_id('p_order_id', p_order_id);
    IF p_status NOT IN ('created', 'shipped', 'in_transit', 'customs', 'delivered', 'lost') THEN
        PERFORM crm_private.invalid(
            'p_status', p_status, 'one of created, shipped, in_transit, customs, delivered, lost'
        );
    END IF;
    IF NOT isfinite(p_estimated_delivery_date) THEN
        PERFORM crm_private.invalid('p_estimated_delivery_date', p_estimated_delivery_date::text, 'a finite date');
    END IF;
    IF NOT isfinite(p_ruspost_last_update) THEN
        PERFORM crm_private.invalid('p_ruspost_last_update', p_ruspost_last_update::text, 'a finite time');
    END IF;
    PERFORM crm_private.locked_order(p_order_id);
    IF p_shipment_id IS NOT NULL THEN
        SELECT * INTO v_old FROM public.shipments s WHERE s.id = p_shipment_id FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            PERFORM crm_private.not_found('shipments', 'p_shipment_id', p_shipment_id);
        END IF;
        IF v_old.order_id IS DISTINCT FROM p_order_id THEN
            PERFORM crm_private.conflict(
                'shipment_order', 'the shipment belongs to another order',
                jsonb_build_object(
                    'field', 'p_order_id', 'found', p_order_id, 'accepted', v_old.order_id, 'id', v_old.id
                ),
                'Pass the order of the shipment.'
            );
        END IF;
    ELSIF v_tracking IS NOT NULL THEN
        -- the order is locked, so that a tracking number stays one row even if two callers add it at once
        SELECT * INTO v_old FROM public.shipments s
        WHERE s.order_id = p_order_id AND s.tracking_number = v_tracking
            AND s.provider::text = coalesce(v_provider, s.provider::text)
        ORDER BY s.created_at, s.id LIMIT 1 FOR NO KEY UPDATE;
    END IF;
    PERFORM crm_private.check_version('shipments', v_old.id, coalesce(v_old.version, 0), p_expected_version);
    IF v_old.id IS NULL THEN
        INSERT INTO public.shipments (
            order_id, provider, tracking_number, status, estimated_delivery_date, warehouse_received,
            warehouse_photos_received, client_received, ruspost_status, ruspost_last_update, created_by
        )
        VALUES (
            p_order_id, coalesce(v_provider, 'rusbid')::public.shipment_provider_enum, v_tracking,
            coalesce(p_status, 'created'), p_estimated_delivery_date, coalesce(p_warehouse_received, false),
            coalesce(p_warehouse_photos_received, false), coalesce(p_client_received, false), v_ruspost_status,
            v_ruspost_update, v_actor.id
        )
        RETURNING * INTO v_new;
        PERFORM crm_private.audit(v_actor.id, 'create', 'shipments', v_new.id, v_new);
    ELSE
        UPDATE public.shipments s SET
            provider = coalesce(v_provider::public.shipment_provider_enum, s.provider),
            tracking_number = coalesce(
                v_tracking, CASE WHEN 'tracking_number' <> ALL (v_clear) THEN s.tracking_number END
            ),
            status = coalesce(p_status, s.status),
            estimated_delivery_date = coalesce(
                p_estimated_delivery_date,
                CASE WHEN 'estimated_delivery_date' <> ALL (v_clear) THEN s.estimated_delivery_date END
            ),
            warehouse_received = coalesce(p_warehouse_received, s.warehouse_received),
            warehouse_photos_received = coalesce(p_warehouse_photos_received, s.warehouse_photos_received),
            client_received = coalesce(p_client_received, s.client_received),
            ruspost_status = coalesce(
                v_ruspost_status, CASE WHEN 'ruspost_status' <> ALL (v_clear) THEN s.ruspost_status END
            ),
            ruspost_last_update = coalesce(
                v_ruspost_update, CASE WHEN 'ruspost_last_update' <> ALL (v_clear) THEN s.ruspost_last_update END
            )
        WHERE s.id = v_old.id RETURNING * INTO v_new;
        PERFORM crm_private.audit_update(v_actor.id, 'shipments', v_new.id, to_jsonb(v_old), to_jsonb(v_new));
    END IF;
    RETURN jsonb_build_object(
        'id', v_new.id, 'order_id', v_new.order_id, 'status', v_new.status, 'created', v_old.id IS NULL,
        'version', v_new.version
    );
END
$$;
COMMENT ON FUNCTION public.upsert_shipment_safe IS
    E'Creates a shipment of an order or changes one.\n'
    'Rules: any active user; with p_shipment_id that one, else the order''s oldest shipment with this tracking '
    'number (and provider, if given), else a new one (rusbid, created); NULL or blank arguments change nothing; '
    'p_ruspost_status keeps the carrier''s answer as it came, and p_ruspost_last_update its time (now, if the answer '
    'comes without one); p_clear empties fields (tracking_number, estimated_delivery_date, ruspost_status, '
    'ruspost_last_update).\n'
    'Errors: 42501 actor unknown or inactive; PT422 unknown provider or status, tracking number or answer too long, '
    'delivery date or time infinite, a field of p_clear required, unknown or also given; PT404 no such order or '
    'shipment; PT409 shipment of another order, or changed since p_expected_version.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
