-- RPCs for payments: the ledger, its rules, and its effects on orders.

-- The rules for booking a payment and for changing its status. They run with the caller's rights.

CREATE FUNCTION crm_private.check_reference_given(
    p_direction text, p_method text, p_status text, p_reference text
) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    IF p_direction = 'incoming' AND p_method IN ('online_cashbox', 'card') AND p_status = 'completed'
        AND p_reference IS NULL
    THEN
        PERFORM crm_private.invalid(
            'p_external_reference', NULL,
            'the payment provider''s reference, required for completed incoming payments by online_cashbox or card'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_reference_given IS
    'Refuses (PT422) a completed incoming payment by online_cashbox or card without a reference.';

CREATE FUNCTION crm_private.refuse_different_repeat(
    p_payment public.payments, p_wanted jsonb, p_status text
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_field text;
BEGIN
    SELECT w.key INTO v_field FROM jsonb_each(p_wanted) w
    WHERE to_jsonb(p_payment) -> w.key IS DISTINCT FROM w.value ORDER BY w.key LIMIT 1;
    IF FOUND THEN
        PERFORM crm_private.conflict(
            'reference_taken', format('this external reference belongs to a payment with another %s', v_field),
            jsonb_build_object(
                'field', v_field, 'found', p_wanted -> v_field, 'accepted', to_jsonb(p_payment) -> v_field,
                'id', p_payment.id
            ),
            'A reference is booked only once. Look at the payment it belongs to.'
        );
    END IF;
    IF p_status = 'completed' AND p_payment.status <> 'completed' THEN
        PERFORM crm_private.conflict(
            'reference_taken', 'this external reference belongs to a payment that is ' || p_payment.status,
            jsonb_build_object('field', 'status', 'found', p_status, 'accepted', p_payment.status, 'id', p_payment.id),
            CASE
                WHEN p_payment.status IN ('failed', 'cancelled')
                    THEN 'That payment is final. Use a new reference for a new attempt.'
                ELSE 'Complete that payment with update_payment_status_safe.'
            END
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.refuse_different_repeat IS
    'Refuses (PT409) a repeated reference with another order, direction, role, method, amount, currency or related '
    'payment, or one that completes a payment stored as open.';

CREATE FUNCTION crm_private.check_payment_state(
    p_order public.orders, p_payment public.payments, p_status text
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_money record;
BEGIN
    IF p_order.status IN ('cancelled', 'closed') AND p_payment.role NOT IN ('client_payment', 'refund') THEN
        PERFORM crm_private.conflict(
            'order_over', format('a %s order accepts only client payments and refunds', p_order.status),
            jsonb_build_object(
                'field', 'role', 'found', p_payment.role, 'accepted', '["client_payment", "refund"]'::jsonb,
                'order_status', p_order.status, 'id', p_order.id
            ),
            'Settle other payments before the order is closed or cancelled.'
        );
    END IF;
    IF p_payment.role IN ('client_payment', 'refund') AND p_payment.currency IS DISTINCT FROM p_order.currency THEN
        PERFORM crm_private.conflict(
            'currency', format('a %s must be in the currency of the order', p_payment.role),
            jsonb_build_object(
                'field', 'currency', 'found', p_payment.currency, 'accepted', p_order.currency, 'id', p_order.id
            ),
            CASE
                WHEN p_order.currency IS NULL THEN 'Give the order its total and currency first: update_order_safe.'
                ELSE 'Book the amount in the order''s currency.'
            END
        );
    END IF;
    IF p_payment.direction = 'incoming' OR p_status IN ('failed', 'cancelled') AND p_payment.role = 'refund' THEN
        RETURN;
    END IF;
    SELECT * INTO v_money FROM crm_private.client_money(p_order);
    IF p_payment.role = 'refund' THEN
        -- an open refund that is being completed is already counted
        IF v_money.refunded + v_money.refunds_open + (
            CASE WHEN p_payment.id IS NULL THEN p_payment.amount ELSE 0 END
        ) > v_money.paid
        THEN
            PERFORM crm_private.conflict(
                'refund_within_paid', 'refunds would exceed what the client paid',
                jsonb_build_object(
                    'field', 'amount', 'found', p_payment.amount, 'id', p_order.id, 'paid', v_money.paid,
                    'refunded', v_money.refunded, 'refunds_open', v_money.refunds_open,
                    'accepted', v_money.paid - v_money.refunded - v_money.refunds_open
                ),
                'Refund at most the accepted amount, or cancel an open refund first.'
            );
        END IF;
    ELSIF v_money.paid - v_money.refunded <= 0 THEN
        PERFORM crm_private.conflict(
            'payout_after_payment', 'outgoing payments need client money on the order',
            jsonb_build_object(
                'field', 'direction', 'found', p_payment.direction, 'accepted', 'incoming', 'id', p_order.id,
                'paid', v_money.paid, 'refunded', v_money.refunded
            ),
            'Book the completed client payment first.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_payment_state IS
    'Refuses (PT409) a payment that the locked order does not allow: order closed or cancelled, other currency, '
    'payout without client money, refund above what was paid.';

CREATE FUNCTION crm_private.payment_result(
    p_payment public.payments, p_duplicate boolean, p_order public.orders, p_client_paid numeric
) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN jsonb_build_object(
        'id', p_payment.id, 'duplicate', p_duplicate, 'order_id', p_payment.order_id,
        'payment_status', p_payment.status, 'order_status', p_order.status, 'total_amount', p_order.total_amount,
        'currency', p_order.currency, 'client_paid', p_client_paid,
        'overpaid', greatest(p_client_paid - p_order.total_amount, 0)
    );
END
$$;
COMMENT ON FUNCTION crm_private.payment_result IS
    'Returns the result of the payment RPCs: the payment and the state of the order (client_paid is net of '
    'refunds).';

CREATE FUNCTION crm_private.repeated_payment(p_payment public.payments) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_order public.orders;
    v_money record;
BEGIN
    SELECT * INTO v_order FROM public.orders o WHERE o.id = p_payment.order_id;
    SELECT * INTO v_money FROM crm_private.client_money(v_order);
    RETURN crm_private.payment_result(p_payment, true, v_order, v_money.paid - v_money.refunded);
END
$$;
COMMENT ON FUNCTION crm_private.repeated_payment IS
    'Returns the result of a call that repeats a reference: the first payment.';

CREATE FUNCTION crm_private.apply_payment(p_order public.orders, p_payment public.payments, p_actor uuid) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_order public.orders := p_order;
    v_money record;
BEGIN
    SELECT * INTO v_money FROM crm_private.client_money(p_order);
    IF p_payment.role = 'client_payment' AND p_payment.status = 'completed'
        AND p_order.status IN ('created', 'awaiting_payment')
    THEN
        v_order.status := CASE
            WHEN v_money.paid - v_money.refunded >= p_order.total_amount THEN 'paid'
            ELSE 'awaiting_payment'
        END;
        IF v_order.status <> p_order.status THEN
            PERFORM crm_private.set_order_status(
                p_order.id, v_order.status, p_actor, 'payment', NULL, jsonb_build_object('payment_id', p_payment.id)
            );
        END IF;
    END IF;
    RETURN crm_private.payment_result(p_payment, false, v_order, v_money.paid - v_money.refunded);
END
$$;
COMMENT ON FUNCTION crm_private.apply_payment IS
    'Moves a locked order to paid when its net client money reaches the total, and from created to awaiting_payment '
    'at a partial payment; returns the call''s result.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.record_generic_payment_safe(
    p_order_id uuid, p_direction text, p_role text, p_method text, p_amount numeric, p_currency text,
    p_status text DEFAULT NULL, p_external_reference text DEFAULT NULL, p_related_payment_id uuid DEFAULT NULL,
    p_user_id uuid DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_direction text := crm_private.label('p_direction', p_direction, 'public.payment_direction_enum', true);
    v_role text := crm_private.label('p_role', p_role, 'public.payment_role_enum', true);
    v_method text := crm_private.label('p_method', p_method, 'public.payment_method_enum', true);
    v_amount numeric := crm_private.amount('p_amount', p_amount);
    v_currency text := crm_private.label('p_currency', p_currency, 'public.currency_enum', true);
    v_status text := coalesce(
        crm_private.label('p_status', p_status, 'public.payment_status_enum', false), 'completed'
    );
    v_reference text := crm_private.short_text('p_external_reference', p_external_reference);
    v_order public.orders;
    v_payment public.payments;
    v_related public.payments;
    v_wanted jsonb;
BEGIN
    PERFORM crm_private.required_id('p_order_id', p_order_id);
    IF v_role = 'client_payment' AND v_direction <> 'incoming' THEN
        PERFORM crm_private.invalid('p_direction', v_direction, 'incoming for client_payment');
    ELSIF v_role IN ('refund', 'supplier_payment') AND v_direction <> 'outgoing' THEN
        PERFORM crm_private.invalid('p_direction', v_direction, 'outgoing for ' || v_role);
    END IF;
    PERFORM crm_private.check_reference_given(v_direction, v_method, v_status, v_reference);
    v_order := crm_private.locked_order(p_order_id);
    IF p_related_payment_id IS NOT NULL THEN
        SELECT * INTO v_related FROM public.payments p WHERE p.id = p_related_payment_id;
        IF NOT FOUND THEN
            PERFORM crm_private.not_found('payments', 'p_related_payment_id', p_related_payment_id);
        END IF;
    END IF;
    IF v_role = 'refund' THEN
        PERFORM crm_private.require_admin(v_actor, 'a refund');
    END IF;
    v_wanted := jsonb_build_object(
        'order_id', p_order_id, 'direction', v_direction, 'role', v_role, 'method', v_method, 'amount', v_amount,
        'currency', v_currency, 'related_payment_id', p_related_payment_id
    );

    IF v_reference IS NOT NULL THEN
        SELECT * INTO v_payment FROM public.payments p WHERE p.reference_key = v_reference;
        IF FOUND THEN
            PERFORM crm_private.refuse_different_repeat(v_payment, v_wanted, v_status);
            RETURN crm_private.repeated_payment(v_payment);
        END IF;
    END IF;

    IF v_related.order_id IS DISTINCT FROM p_order_id AND p_related_payment_id IS NOT NULL THEN
        PERFORM crm_private.conflict(
            'related_payment', 'the related payment belongs to another order',
            jsonb_build_object(
                'field', 'p_related_payment_id', 'found', v_related.order_id, 'accepted', p_order_id, 'id', v_related.id
            ),
            'Relate payments of one order only.'
        );
    END IF;
    v_payment.order_id := p_order_id;
    v_payment.direction := v_direction;
    v_payment.role := v_role;
    v_payment.amount := v_amount;
    v_payment.currency := v_currency;
    PERFORM crm_private.check_payment_state(v_order, v_payment, v_status);

    INSERT INTO public.payments (
        order_id, direction, role, method, amount, currency, status, external_reference, reference_key,
        related_payment_id, created_by
    )
    VALUES (
        p_order_id, v_direction::public.payment_direction_enum, v_role::public.payment_role_enum,
        v_method::public.payment_method_enum, v_amount, v_currency::public.currency_enum,
        v_status::public.payment_status_enum, v_reference, v_reference, p_related_payment_id, v_actor.id
    )
    ON CONFLICT (reference_key) DO NOTHING RETURNING * INTO v_payment;
    IF NOT FOUND THEN
        -- booked on another order a moment ago; only a new statement sees it
        SELECT * INTO STRICT v_payment FROM public.payments p WHERE p.reference_key = v_reference;
        PERFORM crm_private.refuse_different_repeat(v_payment, v_wanted, v_status);
        RETURN crm_private.repeated_payment(v_payment);
    END IF;
    PERFORM crm_private.audit(v_actor.id, 'create', 'payments', v_payment.id, to_jsonb(v_payment));
    RETURN crm_private.apply_payment(v_order, v_payment, v_actor.id);
END
$$;
COMMENT ON FUNCTION public.record_generic_payment_safe IS
    E'Books an incoming or outgoing payment of an order, once per external reference, and moves the order according '
    'to its client money.\n'
    'Rules: p_status defaults to completed; client_payment is incoming, refund and supplier_payment are outgoing; '
    'client payments and refunds are in the order''s currency; a completed incoming payment by online_cashbox or '
    'card needs a reference; a repeated reference with the same facts returns the first payment with duplicate '
    'true; refunds need an admin and stay within what the client paid; other outgoing payments only while net '
    'client money is positive; net client money that reaches the total moves the order to paid, a partial payment '
    'from created to awaiting_payment; a cancelled or closed order accepts only client payments and refunds, and '
    'keeps its status.\n'
    'Errors: 42501 actor missing, unknown or inactive, refund by a non-admin; PT422 an argument not accepted or '
    'reference missing; PT404 no such order or related payment; PT409 reference booked with other facts or still '
    'open, order closed or cancelled, other currency, payout without client money, refund above what was paid, '
    'related payment of another order.';

CREATE FUNCTION public.update_payment_status_safe(
    p_payment_id uuid, p_new_status text, p_user_id uuid, p_external_reference text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_new_status text := crm_private.label('p_new_status', p_new_status, 'public.payment_status_enum', true);
    v_accepted jsonb;
    v_reference text := crm_private.short_text('p_external_reference', p_external_reference);
    v_order public.orders;
    v_old public.payments;
    v_payment public.payments;
    v_stored text;
    v_holder uuid;
BEGIN
    PERFORM crm_private.required_id('p_payment_id', p_payment_id);
    SELECT * INTO v_old FROM public.payments p WHERE p.id = p_payment_id;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('payments', 'p_payment_id', p_payment_id);
    END IF;
    IF v_old.order_id IS NULL THEN
        PERFORM crm_private.conflict(
            'order_missing', 'this adopted payment has no order',
            jsonb_build_object(
                'field', 'p_payment_id', 'found', NULL, 'accepted', 'a payment of an order', 'id', v_old.id
            ),
            'Book the payment again on its order.'
        );
    END IF;
    v_order := crm_private.locked_order(v_old.order_id);
    -- read again, now that the order is locked
    SELECT * INTO STRICT v_old FROM public.payments p WHERE p.id = p_payment_id;
    IF v_old.role = 'refund' THEN
        PERFORM crm_private.require_admin(v_actor, 'changing a refund');
    END IF;
    v_accepted := CASE v_old.status::text
        WHEN 'planned' THEN '["pending", "completed", "failed", "cancelled"]'
        WHEN 'pending' THEN '["completed", "failed", "cancelled"]'
        ELSE '[]'
    END;
    IF NOT v_accepted ? v_new_status THEN
        PERFORM crm_private.conflict(
            'payment_transition', format('a payment cannot go from %s to %s', v_old.status, v_new_status),
            jsonb_build_object(
                'field', 'p_new_status', 'found', v_new_status, 'from', v_old.status, 'id', v_old.id,
                'accepted', v_accepted
            ),
            'Completed, failed and cancelled payments are final; book another payment instead.'
        );
    END IF;
    v_stored := crm_private.trimmed(v_old.external_reference);
    IF v_reference <> v_stored THEN
        PERFORM crm_private.conflict(
            'reference_fixed', 'this payment has another external reference',
            jsonb_build_object(
                'field', 'external_reference', 'found', v_reference, 'accepted', v_old.external_reference,
                'id', v_old.id
            ),
            'Omit p_external_reference, or find the payment that has this reference.'
        );
    END IF;
    IF v_new_status = 'completed' AND v_stored IS NOT NULL AND v_old.reference_key IS NULL THEN
        PERFORM crm_private.conflict(
            'reference_taken', 'an older payment already has this external reference',
            jsonb_build_object(
                'field', 'external_reference', 'found', v_stored, 'accepted', NULL,
                'id', (SELECT p.id FROM public.payments p WHERE p.reference_key = v_stored)
            ),
            'A reference is booked only once: cancel this adopted duplicate.'
        );
    END IF;
    v_reference := coalesce(v_stored, v_reference);
    PERFORM crm_private.check_reference_given(v_old.direction::text, v_old.method::text, v_new_status, v_reference);
    IF v_new_status IN ('pending', 'completed') THEN
        PERFORM crm_private.check_payment_state(v_order, v_old, v_new_status);
    END IF;
    BEGIN
        UPDATE public.payments p SET
            status = v_new_status::public.payment_status_enum,
            external_reference = CASE
                WHEN v_stored IS NULL THEN coalesce(v_reference, p.external_reference)
                ELSE p.external_reference
            END,
            reference_key = CASE WHEN v_stored IS NULL THEN v_reference ELSE p.reference_key END,
            updated_at = clock_timestamp()
        WHERE p.id = v_old.id RETURNING * INTO STRICT v_payment;
    EXCEPTION WHEN unique_violation THEN
        SELECT p.id INTO v_holder FROM public.payments p WHERE p.reference_key = v_reference;
        PERFORM crm_private.conflict(
            'reference_taken', 'this external reference belongs to another payment',
            jsonb_build_object('field', 'external_reference', 'found', v_reference, 'accepted', NULL, 'id', v_holder),
            'A reference is booked only once. Look at the payment it belongs to.'
        );
    END;
    PERFORM crm_private.audit(
        v_actor.id, 'status_change', 'payments', v_payment.id, to_jsonb(v_payment),
        jsonb_build_object('old', v_old.status, 'new', v_payment.status)
    );
    RETURN crm_private.apply_payment(v_order, v_payment, v_actor.id);
END
$$;
COMMENT ON FUNCTION public.update_payment_status_safe IS
    E'Moves a payment: planned to pending, planned or pending to completed, failed or cancelled.\n'
    'Rules: those of record_generic_payment_safe apply to pending and completed, with the same effects on the '
    'order; only admins change refunds; a reference can be added but never changed; an adopted payment whose '
    'reference belongs to an older one is never completed; failed and cancelled are possible whatever the order''s '
    'status.\n'
    'Errors: 42501 actor unknown or inactive, refund by a non-admin; PT422 unknown status, reference missing or too '
    'long; PT404 no such payment; PT409 transition not allowed, other reference or reference taken, order closed or '
    'cancelled, payout without client money, refund above what was paid.';

CREATE FUNCTION public.checkout_order_safe(
    p_customer_id uuid, p_items jsonb, p_total_amount numeric, p_currency text, p_method text,
    p_external_reference text, p_user_id uuid, p_lead_id uuid DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(
        p_user_id, p_assignee => (SELECT l.assigned_to FROM public.leads l WHERE l.id = p_lead_id)
    );
    v_total numeric := crm_private.amount('p_total_amount', p_total_amount);
    v_currency text := crm_private.label('p_currency', p_currency, 'public.currency_enum', true);
    v_method text := crm_private.label('p_method', p_method, 'public.payment_method_enum', true);
    v_reference text := crm_private.short_text('p_external_reference', p_external_reference);
    v_items jsonb := coalesce(crm_private.items('p_items', p_items), '[]'::jsonb);
    v_first public.payments;
    v_first_items jsonb;
    v_order public.orders;
    v_created jsonb;
    v_payment jsonb;
BEGIN
    IF p_lead_id IS NULL THEN
        PERFORM crm_private.required_id('p_customer_id', p_customer_id);
    END IF;
    PERFORM crm_private.check_reference_given('incoming', v_method, 'completed', v_reference);
    IF v_reference IS NOT NULL THEN
        -- A shop that repeats its checkout gets the first one back. If both come at once, the second waits here.
        PERFORM pg_advisory_xact_lock(hashtextextended('crm:checkout:' || v_reference, 0));
        SELECT * INTO v_first FROM public.payments p WHERE p.reference_key = v_reference;
        IF FOUND THEN
            SELECT * INTO v_order FROM public.orders o WHERE o.id = v_first.order_id;
            PERFORM crm_private.refuse_different_repeat(
                v_first,
                jsonb_build_object(
                    'direction', 'incoming', 'role', 'client_payment', 'method', v_method, 'amount', v_total,
                    'currency', v_currency
                ),
                'completed'
            );
            IF v_order.customer_id IS DISTINCT FROM coalesce(p_customer_id, v_order.customer_id)
                OR v_order.lead_id IS DISTINCT FROM coalesce(p_lead_id, v_order.lead_id)
                OR v_order.total_amount IS DISTINCT FROM v_total
            THEN
                PERFORM crm_private.conflict(
                    'reference_taken', 'this external reference paid another order',
                    jsonb_build_object('field', 'order_id', 'found', NULL, 'accepted', v_order.id, 'id', v_first.id),
                    'A reference is booked only once. Look at the payment it belongs to.'
                );
            END IF;
            -- compared with the first checkout, because people may have edited the order since
            SELECT l.payload #> '{row,items}' INTO v_first_items FROM public.audit_log l
            WHERE l.entity = 'orders' AND l.entity_id = v_order.id AND l.action = 'create';
            IF v_items <> v_first_items THEN
                PERFORM crm_private.conflict(
                    'reference_taken', 'this external reference paid other items',
                    jsonb_build_object(
                        'field', 'p_items', 'found', left(v_items::text, 200),
                        'accepted', left(v_first_items::text, 200), 'id', v_first.id
                    ),
                    'A reference is booked only once. Look at the order that it paid.'
                );
            END IF;
            RETURN crm_private.repeated_payment(v_first) || jsonb_build_object(
                'id', v_order.id, 'payment_id', v_first.id, 'order_code', v_order.order_code, 'status', v_order.status
            );
        END IF;
    END IF;
    v_created := public.create_order_safe(
        p_customer_id => p_customer_id, p_lead_id => p_lead_id, p_items => p_items, p_total_amount => p_total_amount,
        p_currency => p_currency, p_user_id => v_actor.id
    );
    v_payment := public.record_generic_payment_safe(
        p_order_id => (v_created ->> 'id')::uuid, p_direction => 'incoming', p_role => 'client_payment',
        p_method => p_method, p_amount => p_total_amount, p_currency => p_currency, p_status => 'completed',
        p_external_reference => v_reference, p_user_id => v_actor.id
    );
    RETURN v_payment || jsonb_build_object(
        'id', v_created -> 'id', 'payment_id', v_payment -> 'id', 'order_code', v_created -> 'order_code',
        'status', v_payment -> 'order_status'
    );
END
$$;
COMMENT ON FUNCTION public.checkout_order_safe IS
    E'Creates an order that is paid at once: books the client''s completed payment of its total, all or nothing.\n'
    'Rules: those of create_order_safe and record_generic_payment_safe; repeating a checkout with its reference, '
    'customer, items and total returns the first order with duplicate true. The result''s id is the order''s, '
    'payment_id the payment''s.\n'
    'Errors: those of create_order_safe and record_generic_payment_safe; 42501 also if p_user_id is NULL.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
