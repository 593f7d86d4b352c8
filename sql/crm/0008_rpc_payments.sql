-- RPCs for payments: the ledger, its rules, and its effects on orders.

-- The rules for booking a payment and for changing its status. They run with the caller's rights.
-- No search_path: they are helpers like those of 0005.

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

CREATE FUNCTION crm_private.payment_facts(p_payment public.payments) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    RETURN jsonb_build_object(
        'order_id', p_payment.order_id, 'direction', p_payment.direction, 'role', p_payment.role,
        'method', p_payment.method, 'amount', p_payment.amount, 'currency', p_payment.currency,
        'related_payment_id', p_payment.related_payment_id
    );
END
$$;
COMMENT ON FUNCTION crm_private.payment_facts IS 'Returns what a repeated payment must have in common with the first.';

CREATE FUNCTION crm_private.refuse_different_repeat(p_payment public.payments, p_wanted jsonb) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_payment public.payments := p_payment;
    v_field text;
BEGIN
    -- A payment that was booked on the wrong order and then on the right one is found by what it was at first, too.
    LOOP
        PERFORM FROM jsonb_each(p_wanted) w WHERE to_jsonb(v_payment) -> w.key IS DISTINCT FROM w.value;
        IF NOT FOUND THEN
            RETURN;
        END IF;
        EXIT WHEN v_payment.rebooks IS NULL;
        SELECT * INTO STRICT v_payment FROM public.payments p WHERE p.id = v_payment.rebooks;
    END LOOP;
    SELECT w.key INTO STRICT v_field FROM jsonb_each(p_wanted) w
    WHERE to_jsonb(p_payment) -> w.key IS DISTINCT FROM w.value ORDER BY w.key LIMIT 1;
    PERFORM crm_private.conflict(
        'reference_taken', format('this external reference belongs to a payment with another %s', v_field),
        jsonb_build_object(
            'field', v_field, 'found', p_wanted -> v_field, 'accepted', to_jsonb(p_payment) -> v_field,
            'id', p_payment.id
        ),
        'A reference is booked only once. Look at the payment it belongs to.'
    );
END
$$;
COMMENT ON FUNCTION crm_private.refuse_different_repeat IS
    'Refuses (PT409) a repeated reference with another order, direction, role, method, amount, currency or related '
    'payment.';

CREATE FUNCTION crm_private.payout_limit(p_order public.orders, p_currency public.currency_enum) RETURNS numeric
LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN p_currency IS DISTINCT FROM p_order.currency
            THEN coalesce((SELECT l.manager_limit FROM public.payout_limits l WHERE l.currency = p_currency), 0)
    END
$$;
COMMENT ON FUNCTION crm_private.payout_limit IS
    'Returns what an order''s payouts in a currency other than its own may come to without an admin; NULL in its own '
    'currency, where its client money is the limit.';

CREATE FUNCTION crm_private.booking_detail(
    p_order public.orders, p_payment public.payments, p_reason text
) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT CASE
        WHEN p_payment.direction = 'incoming' AND p_reason IS NULL THEN '{}'::jsonb
        ELSE jsonb_strip_nulls(jsonb_build_object(
            'reason', p_reason,
            'payout_limit',
            CASE WHEN p_payment.direction = 'outgoing' THEN crm_private.payout_limit(p_order, p_payment.currency) END
        ))
    END
$$;
COMMENT ON FUNCTION crm_private.booking_detail IS
    'Returns what a new payment''s audit row says besides the row: the reason, and of a payout the limit that it was '
    'booked under, because limits change.';

CREATE FUNCTION crm_private.check_payout(
    p_order public.orders, p_payment public.payments, p_client_money numeric, p_actor public.users, p_reason text
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_payouts numeric := crm_private.payouts(p_order.id, p_payment.currency);
    v_limit numeric := coalesce(crm_private.payout_limit(p_order, p_payment.currency), p_client_money);
BEGIN
    IF v_payouts + p_payment.amount > v_limit THEN
        PERFORM crm_private.require_admin_with_reason(
            p_actor, p_reason, 'payouts_within_client_money',
            CASE
                WHEN p_payment.currency = p_order.currency THEN 'paying out more than the order''s client money'
                ELSE format('paying out more in %s than its limit in payout_limits', p_payment.currency)
            END,
            jsonb_build_object(
                'id', p_order.id, 'amount', p_payment.amount, 'currency', p_payment.currency, 'payouts', v_payouts,
                'limit', v_limit
            )
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_payout IS
    'Refuses a payout by which an order''s payouts (supplier, shipping, commission; planned, pending or completed, '
    'less money back) exceed its net client money, or in another currency that currency''s limit: managers (42501), '
    'and admins without a reason (PT409).';

CREATE FUNCTION crm_private.check_payment_state(
    p_order public.orders, p_payment public.payments, p_status text, p_actor public.users, p_reason text
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_money record;
BEGIN
    IF p_order.status IN ('cancelled', 'closed') AND p_payment.role NOT IN ('client_payment', 'refund')
        AND (p_payment.role <> 'supplier_payment' OR p_payment.direction <> 'incoming')
    THEN
        PERFORM crm_private.conflict(
            'order_over',
            format('a %s order accepts only client payments, refunds and money back from a supplier', p_order.status),
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
    SELECT * INTO v_money FROM crm_private.client_money(p_order.id, p_order.currency);
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
    ELSIF p_payment.id IS NULL AND p_status IN ('planned', 'pending', 'completed') THEN
        PERFORM crm_private.check_payout(p_order, p_payment, v_money.paid - v_money.refunded, p_actor, p_reason);
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_payment_state IS
    'Refuses a payment that the locked order does not allow (PT409): order closed or cancelled, other currency, payout '
    'without client money, refund above what was paid. A new payout (one without an id) also obeys check_payout.';

CREATE FUNCTION crm_private.check_money_back(p_payment public.payments, p_paid_out public.payments) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_back numeric;
BEGIN
    IF p_paid_out.role <> 'supplier_payment' OR p_paid_out.direction <> 'outgoing' OR p_paid_out.status <> 'completed'
        OR p_paid_out.currency <> p_payment.currency OR p_paid_out.reverses IS NOT NULL
        OR EXISTS (SELECT FROM public.payments r WHERE r.reverses = p_paid_out.id)
    THEN
        PERFORM crm_private.conflict(
            'money_back', 'money comes back only from a completed supplier payment in its currency',
            jsonb_build_object(
                'field', 'p_related_payment_id', 'found',
                jsonb_build_object(
                    'role', p_paid_out.role, 'direction', p_paid_out.direction, 'status', p_paid_out.status,
                    'currency', p_paid_out.currency
                ),
                'accepted', format('a completed outgoing supplier_payment in %s, not reversed', p_payment.currency),
                'id', p_paid_out.id
            ),
            'Relate the supplier payment that the money comes back from.'
        );
    END IF;
    SELECT coalesce(sum(p.amount), 0) INTO v_back
    FROM public.payments p
    WHERE p.related_payment_id = p_paid_out.id AND p.role = 'supplier_payment' AND p.direction = 'incoming'
        AND p.status IN ('planned', 'pending', 'completed') AND p.reverses IS NULL AND p.amount <> 'NaN'
        AND NOT EXISTS (SELECT FROM public.payments r WHERE r.reverses = p.id);
    IF v_back + p_payment.amount > p_paid_out.amount THEN
        PERFORM crm_private.conflict(
            'money_back', 'more would come back than the supplier was paid',
            jsonb_build_object(
                'field', 'amount', 'found', p_payment.amount, 'accepted', p_paid_out.amount - v_back,
                'id', p_paid_out.id
            ),
            'Book at most the accepted amount.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_money_back IS
    'Refuses (PT409) money back from a supplier that was not paid out by the related payment: other kind, status or '
    'currency, reversed, or more than it.';

CREATE FUNCTION crm_private.payment_result(
    p_payment public.payments, p_duplicate boolean, p_order public.orders, p_client_paid numeric
) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
    SELECT jsonb_build_object(
        'id', p_payment.id, 'duplicate', p_duplicate, 'order_id', p_payment.order_id,
        'payment_status', p_payment.status, 'order_status', p_order.status, 'total_amount', p_order.total_amount,
        'currency', p_order.currency, 'client_paid', p_client_paid,
        'overpaid', greatest(p_client_paid - p_order.total_amount, 0)
    )
$$;
COMMENT ON FUNCTION crm_private.payment_result IS
    'Returns the result of the payment RPCs: the payment and the state of the order (client_paid is net of '
    'refunds).';

CREATE FUNCTION crm_private.repeated_payment(p_payment public.payments) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_order public.orders;
    v_net numeric;
BEGIN
    SELECT * INTO v_order FROM public.orders o WHERE o.id = p_payment.order_id;
    SELECT m.net INTO v_net FROM crm_private.client_money(v_order.id, v_order.currency) m;
    RETURN crm_private.payment_result(p_payment, true, v_order, v_net);
END
$$;
COMMENT ON FUNCTION crm_private.repeated_payment IS
    'Returns the result of a call that repeats an earlier one: the payment as it is.';

CREATE FUNCTION crm_private.apply_payment(p_order public.orders, p_payment public.payments, p_actor uuid) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_order public.orders := p_order;
    v_net numeric;
BEGIN
    SELECT m.net INTO v_net FROM crm_private.client_money(p_order.id, p_order.currency) m;
    -- a reversed refund is client money again
    IF p_payment.status = 'completed' AND p_order.status IN ('created', 'awaiting_payment')
        AND p_payment.role = (
            CASE WHEN p_payment.reverses IS NULL THEN 'client_payment'::public.payment_role_enum ELSE 'refund' END
        )
    THEN
        v_order.status := CASE
            WHEN v_net >= p_order.total_amount THEN 'paid'::public.order_status_enum
            ELSE 'awaiting_payment'
        END;
        IF v_order.status <> p_order.status THEN
            PERFORM crm_private.set_order_status(
                p_order.id, v_order.status, p_actor, 'payment', NULL, jsonb_build_object('payment_id', p_payment.id)
            );
        END IF;
    END IF;
    RETURN crm_private.payment_result(p_payment, false, v_order, v_net);
END
$$;
COMMENT ON FUNCTION crm_private.apply_payment IS
    'Moves a locked order to paid when its net client money reaches the total, and from created to awaiting_payment '
    'at a partial payment; returns the call''s result.';

CREATE FUNCTION crm_private.move_payment(
    p_order public.orders, p_payment public.payments, p_new_status text, p_reference text, p_actor public.users,
    p_expected_version integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_key text := crm_private.reference_key(p_reference);
    v_stored text := crm_private.trimmed(p_payment.external_reference);
    v_accepted jsonb;
    v_payment public.payments;
BEGIN
    IF p_payment.status::text = p_new_status
        AND (p_reference IS NULL OR v_key = crm_private.reference_key(v_stored))
    THEN
        RETURN crm_private.repeated_payment(p_payment) || jsonb_build_object('version', p_payment.version);
    END IF;
    PERFORM crm_private.check_version('payments', p_payment.id, p_payment.version, p_expected_version);
    IF p_payment.status::text <> p_new_status THEN
        v_accepted := CASE p_payment.status::text
            WHEN 'planned' THEN '["pending", "completed", "failed", "cancelled"]'
            WHEN 'pending' THEN '["completed", "failed", "cancelled"]'
            ELSE '[]'
        END;
        IF NOT v_accepted ? p_new_status THEN
            PERFORM crm_private.conflict(
                'payment_transition', format('a payment cannot go from %s to %s', p_payment.status, p_new_status),
                jsonb_build_object(
                    'field', 'p_new_status', 'found', p_new_status, 'from', p_payment.status, 'id', p_payment.id,
                    'accepted', v_accepted
                ),
                'Completed, failed and cancelled payments are final; book another payment instead, or reverse a '
                || 'completed one: reverse_payment_safe.'
            );
        END IF;
    END IF;
    IF p_reference IS NOT NULL AND (
        v_stored IS NOT NULL AND v_key IS DISTINCT FROM crm_private.reference_key(v_stored)
        OR p_payment.status IN ('completed', 'failed', 'cancelled')
    ) THEN
        PERFORM crm_private.conflict(
            'reference_fixed', 'this payment has another external reference',
            jsonb_build_object(
                'field', 'external_reference', 'found', p_reference, 'accepted', p_payment.external_reference,
                'id', p_payment.id
            ),
            'Omit p_external_reference, or find the payment that has this reference.'
        );
    END IF;
    IF p_new_status = 'completed' AND v_stored IS NOT NULL AND p_payment.reference_key IS NULL THEN
        IF crm_private.reference_key(v_stored) IS NULL THEN
            PERFORM crm_private.conflict(
                'reference_unusable', 'this adopted payment''s reference has invisible characters or blanks inside',
                jsonb_build_object(
                    'field', 'external_reference', 'found', crm_private.visible(v_stored), 'accepted', NULL,
                    'id', p_payment.id
                ),
                'Cancel it, and book the payment with its provider''s reference: record_generic_payment_safe.'
            );
        END IF;
        PERFORM crm_private.conflict(
            'reference_taken', 'an older payment already has this external reference',
            jsonb_build_object(
                'field', 'external_reference', 'found', v_stored, 'accepted', NULL,
                'id', (
                    SELECT p.id FROM public.payments p WHERE p.reference_key = crm_private.reference_key(v_stored)
                )
            ),
            'A reference is booked only once: cancel this adopted duplicate.'
        );
    END IF;
    PERFORM crm_private.check_reference_given(
        p_payment.direction::text, p_payment.method::text, p_new_status, coalesce(v_stored, p_reference)
    );
    IF p_new_status IN ('pending', 'completed') AND p_new_status <> p_payment.status::text THEN
        PERFORM crm_private.check_payment_state(p_order, p_payment, p_new_status, p_actor, NULL);
    END IF;
    BEGIN
        UPDATE public.payments p SET
            status = p_new_status::public.payment_status_enum,
            external_reference = CASE
                WHEN v_stored IS NULL THEN coalesce(p_reference, p.external_reference)
                ELSE p.external_reference
            END,
            reference_key = CASE WHEN v_stored IS NULL THEN v_key ELSE p.reference_key END,
            updated_at = clock_timestamp()
        WHERE p.id = p_payment.id RETURNING * INTO STRICT v_payment;
    EXCEPTION WHEN unique_violation THEN
        PERFORM crm_private.conflict(
            'reference_taken', 'this external reference belongs to another payment',
            jsonb_build_object(
                'field', 'external_reference', 'found', p_reference, 'accepted', NULL,
                'id', (SELECT p.id FROM public.payments p WHERE p.reference_key = v_key)
            ),
            'A reference is booked only once. Look at the payment it belongs to.'
        );
    END;
    IF v_payment.status = p_payment.status THEN
        PERFORM crm_private.audit_update(
            p_actor.id, 'payments', v_payment.id, to_jsonb(p_payment), to_jsonb(v_payment)
        );
    ELSE
        PERFORM crm_private.audit(
            p_actor.id, 'status_change', 'payments', v_payment.id, v_payment,
            jsonb_build_object('old', p_payment.status, 'new', v_payment.status)
        );
    END IF;
    RETURN crm_private.apply_payment(p_order, v_payment, p_actor.id)
        || jsonb_build_object('version', v_payment.version);
END
$$;
COMMENT ON FUNCTION crm_private.move_payment IS
    'Moves a payment of the locked order to another status, or stores its first reference, and returns the call''s '
    'result; a repeat changes nothing.';

CREATE FUNCTION crm_private.payment_of_order(p_payment_id uuid) RETURNS public.payments
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_payment public.payments;
BEGIN
    SELECT * INTO v_payment FROM public.payments p WHERE p.id = p_payment_id;
    IF NOT FOUND THEN
        PERFORM crm_private.not_found('payments', 'p_payment_id', p_payment_id);
    END IF;
    IF v_payment.order_id IS NULL THEN
        PERFORM crm_private.conflict(
            'order_missing', 'this adopted payment has no order',
            jsonb_build_object(
                'field', 'p_payment_id', 'found', NULL, 'accepted', 'a payment of an order', 'id', v_payment.id
            ),
            'Book the payment again on its order: record_generic_payment_safe.'
        );
    END IF;
    RETURN v_payment;
END
$$;
COMMENT ON FUNCTION crm_private.payment_of_order IS
    'Returns a payment that has an order; PT404 if there is none, PT409 if an adopted one has no order.';

-- checkouts: which order a payment was booked on at first, and the answer to a repeat

CREATE FUNCTION crm_private.first_booking(p_payment public.payments) RETURNS uuid
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_payment public.payments := p_payment;
BEGIN
    WHILE v_payment.rebooks IS NOT NULL LOOP
        SELECT * INTO STRICT v_payment FROM public.payments p WHERE p.id = v_payment.rebooks;
    END LOOP;
    RETURN v_payment.order_id;
END
$$;
COMMENT ON FUNCTION crm_private.first_booking IS
    'Returns the order on which a payment was booked at first, before reverse_payment_safe moved it.';

CREATE FUNCTION crm_private.refuse_different_checkout(
    p_payment public.payments, p_order_id uuid, p_customer_id uuid, p_lead_id uuid, p_items jsonb, p_total numeric,
    p_wanted jsonb
) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_first jsonb;
BEGIN
    PERFORM crm_private.refuse_different_repeat(p_payment, p_wanted);
    -- compared with the first checkout, because people may have edited the order since
    SELECT l.payload -> 'row' INTO v_first FROM public.audit_log l
    WHERE l.entity = 'orders' AND l.entity_id = p_order_id AND l.action = 'create';
    -- the customer may have been merged since
    IF v_first ->> 'lead_id' IS DISTINCT FROM coalesce(p_lead_id::text, v_first ->> 'lead_id')
        OR (v_first ->> 'total_amount')::numeric IS DISTINCT FROM p_total
        OR p_customer_id IS NOT NULL AND (
            SELECT count(DISTINCT coalesce(c.merged_into, c.id))
            FROM public.customers c
            WHERE c.id IN (p_customer_id, (v_first ->> 'customer_id')::uuid)
        ) <> 1
    THEN
        PERFORM crm_private.conflict(
            'reference_taken', 'this external reference paid another order',
            jsonb_build_object('field', 'order_id', 'found', NULL, 'accepted', p_order_id, 'id', p_payment.id),
            'A reference is booked only once. Look at the payment it belongs to.'
        );
    END IF;
    IF p_items <> v_first -> 'items' THEN
        PERFORM crm_private.conflict(
            'reference_taken', 'this external reference paid other items',
            jsonb_build_object(
                'field', 'p_items', 'found', left(p_items::text, 200),
                'accepted', left((v_first -> 'items')::text, 200), 'id', p_payment.id
            ),
            'A reference is booked only once. Look at the order that it paid.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.refuse_different_checkout IS
    'Refuses (PT409) a repeated checkout with another payment, customer, lead, total or other items than the first.';

CREATE FUNCTION crm_private.checkout_result(p_order_id uuid) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_order public.orders;
    v_payment public.payments;
    v_next public.payments;
BEGIN
    SELECT * INTO STRICT v_order FROM public.orders o WHERE o.id = p_order_id;
    SELECT * INTO STRICT v_next FROM public.payments p
    WHERE p.order_id = p_order_id AND p.role = 'client_payment' AND p.reverses IS NULL
    ORDER BY p.created_at, p.id LIMIT 1;
    LOOP
        v_payment := v_next;
        SELECT * INTO v_next FROM public.payments p WHERE p.rebooks = v_payment.id;
        EXIT WHEN NOT FOUND;
    END LOOP;
    RETURN crm_private.repeated_payment(v_payment) || jsonb_build_object(
        'id', v_order.id, 'payment_id', v_payment.id, 'order_code', v_order.order_code, 'status', v_order.status
    );
END
$$;
COMMENT ON FUNCTION crm_private.checkout_result IS
    'Returns the result of a repeated checkout: the first order and its payment, wherever that is booked now.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.record_generic_payment_safe(
    p_order_id uuid, p_direction text, p_role text, p_method text, p_amount numeric, p_currency text,
    p_status text DEFAULT NULL, p_external_reference text DEFAULT NULL, p_related_payment_id uuid DEFAULT NULL,
    p_user_id uuid DEFAULT NULL, p_reason text DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_status text := coalesce(p_status, 'completed');
    v_reference text := p_external_reference;
    v_key text := p_external_reference;
    v_reason text;
    v_from_client boolean;
    v_detail jsonb;
    v_order public.orders;
    v_new public.payments;
    v_payment public.payments;
    v_related public.payments;
BEGIN
    -- helpers that only refuse are called when they will: a call costs time even if it refuses nothing
    IF crm_private.is_amount(p_amount) IS NOT TRUE THEN
        PERFORM crm_private.amount('p_amount', p_amount);
    END IF;
    IF crm_private.is_own_key(p_external_reference) IS NOT TRUE THEN
        v_reference := crm_private.reference('p_external_reference', p_external_reference);
        v_key := crm_private.reference_key(v_reference);
    END IF;
    IF p_reason IS NOT NULL THEN
        v_reason := crm_private.note('p_reason', p_reason);
    END IF;
    IF p_order_id IS NULL THEN
        PERFORM crm_private.required_id('p_order_id', p_order_id);
    END IF;
    -- a cast tells a label at a third of the cost of pg_input_is_valid; label says what is wrong with the others
    BEGIN
        v_new.direction := p_direction;
        v_new.role := p_role;
        v_new.method := p_method;
        v_new.currency := p_currency;
        v_new.status := v_status;
    EXCEPTION WHEN invalid_text_representation THEN
        NULL;
    END;
    IF v_new.direction IS NULL OR v_new.role IS NULL OR v_new.method IS NULL OR v_new.currency IS NULL
        OR v_new.status IS NULL
    THEN
        PERFORM crm_private.label('p_direction', p_direction, 'public.payment_direction_enum', true);
        PERFORM crm_private.label('p_role', p_role, 'public.payment_role_enum', true);
        PERFORM crm_private.label('p_method', p_method, 'public.payment_method_enum', true);
        PERFORM crm_private.label('p_currency', p_currency, 'public.currency_enum', true);
        PERFORM crm_private.label('p_status', v_status, 'public.payment_status_enum', true);
    END IF;
    v_new.order_id := p_order_id;
    v_new.amount := p_amount;
    v_new.related_payment_id := p_related_payment_id;
    v_from_client := v_new.role = 'client_payment' AND v_new.direction = 'incoming';
    IF NOT v_from_client THEN
        IF v_new.role = 'client_payment' THEN
            PERFORM crm_private.invalid('p_direction', p_direction, 'incoming for client_payment');
        ELSIF v_new.role = 'refund' AND v_new.direction <> 'outgoing' THEN
            PERFORM crm_private.invalid('p_direction', p_direction, 'outgoing for refund');
        ELSIF v_new.role = 'supplier_payment' AND v_new.direction = 'incoming' AND p_related_payment_id IS NULL THEN
            PERFORM crm_private.invalid(
                'p_related_payment_id', NULL, 'the supplier payment that the money comes back from'
            );
        END IF;
    END IF;
    IF v_reference IS NULL THEN
        PERFORM crm_private.check_reference_given(p_direction, p_method, v_status, v_reference);
    END IF;
    v_order := crm_private.locked_order(p_order_id);
    -- A client may always pay for an order in its currency. Whether the reference was booked already, the INSERT tells.
    IF NOT v_from_client OR v_new.currency IS DISTINCT FROM v_order.currency OR p_related_payment_id IS NOT NULL
        OR v_reason IS NOT NULL
    THEN
        IF p_related_payment_id IS NOT NULL THEN
            SELECT * INTO v_related FROM public.payments p WHERE p.id = p_related_payment_id;
            IF NOT FOUND THEN
                PERFORM crm_private.not_found('payments', 'p_related_payment_id', p_related_payment_id);
            END IF;
        END IF;
        IF v_new.role = 'refund' THEN
            PERFORM crm_private.require_admin(v_actor, 'a refund');
        END IF;
        -- a repeat is answered, whatever the order allows now
        SELECT * INTO v_payment FROM public.payments p WHERE p.reference_key = v_key;
        IF NOT FOUND THEN
            IF v_related.order_id IS DISTINCT FROM p_order_id AND p_related_payment_id IS NOT NULL THEN
                PERFORM crm_private.conflict(
                    'related_payment', 'the related payment belongs to another order',
                    jsonb_build_object(
                        'field', 'p_related_payment_id', 'found', v_related.order_id, 'accepted', p_order_id,
                        'id', v_related.id
                    ),
                    'Relate payments of one order only.'
                );
            END IF;
            PERFORM crm_private.check_payment_state(v_order, v_new, v_status, v_actor, v_reason);
            IF v_new.role = 'supplier_payment' AND v_new.direction = 'incoming' THEN
                PERFORM crm_private.check_money_back(v_new, v_related);
            END IF;
            v_detail := crm_private.booking_detail(v_order, v_new, v_reason);
        END IF;
    END IF;

    IF v_payment.id IS NULL THEN
        INSERT INTO public.payments (
            order_id, direction, role, method, amount, currency, status, external_reference, reference_key,
            related_payment_id, created_by
        )
        VALUES (
            v_new.order_id, v_new.direction, v_new.role, v_new.method, v_new.amount, v_new.currency, v_new.status,
            v_reference, v_key, v_new.related_payment_id, v_actor.id
        )
        ON CONFLICT (reference_key) DO NOTHING RETURNING * INTO v_payment;
        IF FOUND THEN
            PERFORM crm_private.audit(v_actor.id, 'create', 'payments', v_payment.id, v_payment, v_detail);
            RETURN crm_private.apply_payment(v_order, v_payment, v_actor.id);
        END IF;
        -- only a new statement sees what was booked on another order a moment ago
        SELECT * INTO STRICT v_payment FROM public.payments p WHERE p.reference_key = v_key;
    END IF;
    PERFORM crm_private.refuse_different_repeat(v_payment, crm_private.payment_facts(v_new));
    IF v_status = 'completed' AND v_payment.status IN ('failed', 'cancelled') THEN
        PERFORM crm_private.conflict(
            'reference_taken', 'this external reference belongs to a payment that is ' || v_payment.status,
            jsonb_build_object(
                'field', 'status', 'found', v_status, 'accepted', v_payment.status, 'id', v_payment.id
            ),
            'That payment is final. Use a new reference for a new attempt.'
        );
    ELSIF v_status = 'completed' AND v_payment.status <> 'completed' THEN
        RETURN crm_private.move_payment(v_order, v_payment, v_status, v_reference, v_actor);
    END IF;
    RETURN crm_private.repeated_payment(v_payment);
END
$$;
COMMENT ON FUNCTION public.record_generic_payment_safe IS
    E'Books an incoming or outgoing payment of an order, once per external reference, and moves the order according '
    'to its client money.\n'
    'Rules: p_status defaults to completed; client_payment is incoming, refund outgoing; an incoming supplier_payment '
    'is money back: it names the completed supplier payment that it comes back from in p_related_payment_id, in its '
    'currency, and all of it is at most what was paid out; client payments and refunds are in the order''s currency; a '
    'completed incoming payment by online_cashbox or card needs a reference; references are compared without invisible '
    'differences; a repeated reference with the same facts returns the first payment with duplicate true, or completes '
    'it if it was open, with the rules of update_payment_status_safe; refunds need an admin and stay within what the '
    'client paid; other outgoing payments only while net client money is positive, and together (planned, pending and '
    'completed, less money back) at most the net client money in the order''s currency, or the limit in payout_limits '
    'in another one: more needs an admin and p_reason; net client money that reaches the total moves the order to '
    'paid, a partial payment from created to awaiting_payment; a cancelled or closed order accepts only client '
    'payments, refunds and money back, and keeps its status.\n'
    'Errors: 42501 actor missing, unknown or inactive, refund or payouts above their limit by a non-admin; PT422 an '
    'argument not accepted, reference or related payment missing; PT404 no such order or related payment; PT409 '
    'reference booked with other facts, or of a failed or cancelled payment, order closed or cancelled, other '
    'currency, payout without client money, payouts above their limit without a reason, refund above what was paid, '
    'related payment of another order, money back that was not paid out.';

CREATE FUNCTION public.update_payment_status_safe(
    p_payment_id uuid, p_new_status text, p_user_id uuid, p_external_reference text DEFAULT NULL,
    p_expected_version integer DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_new_status text := crm_private.label('p_new_status', p_new_status, 'public.payment_status_enum', true);
    v_reference text := crm_private.reference('p_external_reference', p_external_reference);
    v_order public.orders;
    v_payment public.payments;
BEGIN
    PERFORM crm_private.required_id('p_payment_id', p_payment_id);
    v_payment := crm_private.payment_of_order(p_payment_id);
    v_order := crm_private.locked_order(v_payment.order_id);
    -- read again, now that the order is locked
    SELECT * INTO STRICT v_payment FROM public.payments p WHERE p.id = p_payment_id;
    IF v_payment.role = 'refund' THEN
        PERFORM crm_private.require_admin(v_actor, 'changing a refund');
    END IF;
    RETURN crm_private.move_payment(v_order, v_payment, v_new_status, v_reference, v_actor, p_expected_version);
END
$$;
COMMENT ON FUNCTION public.update_payment_status_safe IS
    E'Moves a payment: planned to pending, planned or pending to completed, failed or cancelled.\n'
    'Rules: those of record_generic_payment_safe apply to pending and completed, with the same effects on the '
    'order, but the limit of payouts is checked only when they are booked; a repeat with the status that the payment '
    'has, and its reference or none, returns it with duplicate true, whatever p_expected_version; only admins change '
    'refunds; a first reference can '
    'be added to an open payment, also with the status that it has, but never changed; an adopted payment whose '
    'reference belongs to an older one, or has invisible characters inside, is never completed; failed and cancelled '
    'are possible whatever the order''s status.\n'
    'Errors: 42501 actor unknown or inactive, refund by a non-admin; PT422 unknown status, reference missing or not '
    'accepted; PT404 no such payment; PT409 transition not allowed, other reference or reference taken, order closed '
    'or cancelled, payout without client money, refund above what was paid, payment changed since '
    'p_expected_version.';

CREATE FUNCTION public.checkout_order_safe(
    p_customer_id uuid, p_items jsonb, p_total_amount numeric, p_currency text, p_method text,
    p_external_reference text, p_user_id uuid, p_lead_id uuid DEFAULT NULL, p_idempotency_key text DEFAULT NULL
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
    v_reference text := crm_private.reference('p_external_reference', p_external_reference);
    v_reference_key text := crm_private.reference_key(v_reference);
    v_items jsonb := coalesce(crm_private.items('p_items', p_items), '[]'::jsonb);
    v_key text := crm_private.reference('p_idempotency_key', p_idempotency_key);
    v_order_id uuid;
    v_payment public.payments;
    v_created jsonb;
    v_paid jsonb;
BEGIN
    IF p_lead_id IS NULL THEN
        PERFORM crm_private.required_id('p_customer_id', p_customer_id);
    END IF;
    PERFORM crm_private.check_reference_given('incoming', v_method, 'completed', v_reference);
    v_order_id := crm_private.first_result(
        'checkout_order_safe', v_key,
        jsonb_build_object(
            'customer_id', p_customer_id, 'lead_id', p_lead_id, 'items', v_items, 'total_amount', trim_scale(v_total),
            'currency', v_currency, 'method', v_method, 'external_reference', v_reference_key
        )
    );
    IF v_order_id IS NOT NULL THEN
        RETURN crm_private.checkout_result(v_order_id);
    END IF;
    LOOP
        SELECT * INTO v_payment FROM public.payments p WHERE p.reference_key = v_reference_key;
        IF FOUND THEN
            -- a shop that repeats its checkout gets the first one back
            v_order_id := crm_private.first_booking(v_payment);
            PERFORM crm_private.refuse_different_checkout(
                v_payment, v_order_id, p_customer_id, p_lead_id, v_items, v_total,
                jsonb_build_object(
                    'direction', 'incoming', 'role', 'client_payment', 'method', v_method, 'amount', v_total,
                    'currency', v_currency
                )
            );
            PERFORM crm_private.keep_result('checkout_order_safe', v_key, v_order_id);
            RETURN crm_private.checkout_result(v_order_id);
        END IF;
        BEGIN
            v_created := public.create_order_safe(
                p_customer_id => p_customer_id, p_lead_id => p_lead_id, p_items => p_items,
                p_total_amount => p_total_amount, p_currency => p_currency, p_user_id => v_actor.id
            );
            v_paid := public.record_generic_payment_safe(
                p_order_id => (v_created ->> 'id')::uuid, p_direction => 'incoming', p_role => 'client_payment',
                p_method => p_method, p_amount => p_total_amount, p_currency => p_currency, p_status => 'completed',
                p_external_reference => v_reference, p_user_id => v_actor.id
            );
            EXIT;
        EXCEPTION WHEN SQLSTATE 'PT409' THEN
            -- If the same checkout came twice at once, this one has waited for the other at the lead or the reference,
            -- and its order is undone here. Then the other's payment is there.
            PERFORM FROM public.payments p WHERE p.reference_key = v_reference_key;
            IF NOT FOUND THEN
                RAISE;
            END IF;
        END;
    END LOOP;
    PERFORM crm_private.keep_result('checkout_order_safe', v_key, (v_created ->> 'id')::uuid);
    RETURN v_paid || jsonb_build_object(
        'id', v_created -> 'id', 'payment_id', v_paid -> 'id', 'order_code', v_created -> 'order_code',
        'status', v_paid -> 'order_status'
    );
END
$$;
COMMENT ON FUNCTION public.checkout_order_safe IS
    E'Creates an order that is paid at once: books the client''s completed payment of its total, all or nothing.\n'
    'Rules: those of create_order_safe and record_generic_payment_safe; repeating a checkout with its reference or '
    'its p_idempotency_key, and the same customer, items and total, returns the first order as it is now, with '
    'duplicate true. The result''s id is the order''s, payment_id the payment''s.\n'
    'Errors: those of create_order_safe and record_generic_payment_safe; 42501 also if p_user_id is NULL.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
