-- The RPC that takes back a payment that was booked by mistake, and books it on the right order.
-- No search_path: the helpers here are like those of 0005.

CREATE FUNCTION crm_private.check_covered(p_order public.orders) RETURNS void
LANGUAGE plpgsql
AS $$
DECLARE
    v_money record;
    v_other jsonb;
BEGIN
    SELECT * INTO v_money FROM crm_private.client_money(p_order.id, p_order.currency);
    SELECT jsonb_object_agg(c.currency, c.payouts) INTO v_other
    FROM (
        SELECT p.currency, crm_private.payouts(p_order.id, p.currency) AS payouts
        FROM public.payments p
        WHERE p.order_id = p_order.id
        GROUP BY p.currency
    ) c
    WHERE c.payouts > CASE WHEN c.currency = p_order.currency THEN v_money.paid - v_money.refunded ELSE 0 END
        AND (c.currency = p_order.currency OR v_money.paid - v_money.refunded <= 0);
    IF v_money.refunded + v_money.refunds_open > v_money.paid OR v_other IS NOT NULL THEN
        PERFORM crm_private.conflict(
            'covered', 'without this payment, refunds or payouts of the order would exceed its client money',
            jsonb_build_object(
                'field', 'p_payment_id', 'id', p_order.id, 'paid', v_money.paid,
                'refunded', v_money.refunded + v_money.refunds_open, 'payouts', coalesce(v_other, '{}'),
                'found', v_money.paid - v_money.refunded - v_money.refunds_open, 'accepted', 'zero or more'
            ),
            'Reverse or cancel those refunds and payouts first: reverse_payment_safe, update_payment_status_safe.'
        );
    END IF;
END
$$;
COMMENT ON FUNCTION crm_private.check_covered IS
    'Refuses (PT409) to leave an order with more refunds than its client paid, with payouts in its currency above its '
    'net client money, or with payouts in another currency and no client money.';

CREATE FUNCTION crm_private.rebook_payment(
    p_payment public.payments, p_order public.orders, p_actor public.users, p_reason text
) RETURNS jsonb
LANGUAGE plpgsql
AS $$
DECLARE
    v_old public.payments;
    v_new public.payments;
BEGIN
    IF p_payment.role = 'supplier_payment' AND p_payment.direction = 'incoming' THEN
        PERFORM crm_private.conflict(
            'money_back', 'money back belongs to the order of the supplier payment that it comes back from',
            jsonb_build_object('field', 'p_rebook_order_id', 'found', p_order.id, 'accepted', NULL, 'id', p_payment.id),
            'Reverse it without p_rebook_order_id, and book it again: record_generic_payment_safe.'
        );
    END IF;
    IF p_payment.reference_key IS NULL AND p_payment.direction = 'incoming'
        AND p_payment.method IN ('online_cashbox', 'card')
    THEN
        PERFORM crm_private.conflict(
            'reference_missing', 'this adopted payment has no external reference of its own',
            jsonb_build_object('field', 'p_rebook_order_id', 'found', p_order.id, 'accepted', NULL, 'id', p_payment.id),
            'Reverse it without p_rebook_order_id, and book it with its reference: record_generic_payment_safe.'
        );
    END IF;
    v_new := p_payment;
    v_new.id := NULL;
    v_new.order_id := p_order.id;
    PERFORM crm_private.check_payment_state(p_order, v_new, 'completed', p_actor, p_reason);
    IF p_payment.reference_key IS NOT NULL THEN
        UPDATE public.payments p SET reference_key = NULL, updated_at = clock_timestamp()
        WHERE p.id = p_payment.id RETURNING * INTO STRICT v_old;
        PERFORM crm_private.audit_update(
            p_actor.id, 'payments', v_old.id, to_jsonb(p_payment), to_jsonb(v_old),
            jsonb_build_object('reason', p_reason)
        );
    END IF;
    INSERT INTO public.payments (
        order_id, direction, role, method, amount, currency, status, external_reference, reference_key, rebooks,
        created_by
    )
    VALUES (
        p_order.id, p_payment.direction, p_payment.role, p_payment.method, p_payment.amount, p_payment.currency,
        'completed', CASE WHEN p_payment.reference_key IS NOT NULL THEN p_payment.external_reference END,
        p_payment.reference_key, p_payment.id, p_actor.id
    )
    RETURNING * INTO v_new;
    PERFORM crm_private.audit(
        p_actor.id, 'create', 'payments', v_new.id, v_new,
        crm_private.booking_detail(p_order, v_new, p_reason)
    );
    RETURN crm_private.apply_payment(p_order, v_new, p_actor.id);
END
$$;
COMMENT ON FUNCTION crm_private.rebook_payment IS
    'Books a payment that was just reversed on another locked order, with its reference and the rules of '
    'record_generic_payment_safe.';

SELECT crm_private.close_functions('crm_private', ARRAY['crm_rpc']);

GRANT crm_rpc TO CURRENT_USER WITH SET TRUE, INHERIT FALSE;  -- noqa: PRS
GRANT CREATE ON SCHEMA public, crm_private TO crm_rpc;
SET LOCAL ROLE crm_rpc;

CREATE FUNCTION public.reverse_payment_safe(
    p_payment_id uuid, p_reason text, p_user_id uuid, p_rebook_order_id uuid DEFAULT NULL
) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_actor public.users := crm_private.actor(p_user_id);
    v_reason text := crm_private.required_text('p_reason', p_reason);
    v_payment public.payments;
    v_reversal public.payments;
    v_rebooked public.payments;
    v_order public.orders;
    v_right public.orders;
    v_result jsonb;
BEGIN
    PERFORM crm_private.required_id('p_payment_id', p_payment_id);
    v_payment := crm_private.payment_of_order(p_payment_id);
    IF p_rebook_order_id = v_payment.order_id THEN
        PERFORM crm_private.invalid(
            'p_rebook_order_id', p_rebook_order_id::text, 'another order than the one that the payment is booked on'
        );
    END IF;
    IF p_rebook_order_id IS NOT NULL AND NOT EXISTS (SELECT FROM public.orders o WHERE o.id = p_rebook_order_id) THEN
        PERFORM crm_private.not_found('orders', 'p_rebook_order_id', p_rebook_order_id);
    END IF;
    -- both orders in the order of their ids, because two of these calls may meet
    IF p_rebook_order_id < v_payment.order_id THEN
        v_right := crm_private.locked_order(p_rebook_order_id);
    END IF;
    v_order := crm_private.locked_order(v_payment.order_id);
    IF p_rebook_order_id > v_payment.order_id THEN
        v_right := crm_private.locked_order(p_rebook_order_id);
    END IF;
    -- read again, now that the order is locked
    SELECT * INTO STRICT v_payment FROM public.payments p WHERE p.id = p_payment_id;
    PERFORM crm_private.require_admin(v_actor, 'reversing a payment');

    SELECT * INTO v_reversal FROM public.payments p WHERE p.reverses = v_payment.id;
    IF FOUND THEN
        SELECT * INTO v_rebooked FROM public.payments p WHERE p.rebooks = v_payment.id;
        IF v_rebooked.order_id IS DISTINCT FROM p_rebook_order_id THEN
            PERFORM crm_private.conflict(
                'reversed', 'this payment was reversed already',
                jsonb_build_object(
                    'field', 'p_rebook_order_id', 'found', p_rebook_order_id, 'accepted', v_rebooked.order_id,
                    'id', v_reversal.id
                ),
                'Look at the reversal. To correct where the payment is booked now, reverse that booking.'
            );
        END IF;
        RETURN crm_private.repeated_payment(v_reversal) || jsonb_build_object(
            'reverses', v_payment.id, 'rebooked',
            CASE WHEN v_rebooked.id IS NOT NULL THEN crm_private.repeated_payment(v_rebooked) END
        );
    END IF;
    IF v_payment.reverses IS NOT NULL THEN
        PERFORM crm_private.conflict(
            'reversal', 'a reversal is never reversed',
            jsonb_build_object(
                'field', 'p_payment_id', 'found', v_payment.reverses, 'accepted', 'a payment that is no reversal',
                'id', v_payment.id
            ),
            'Book the payment again: record_generic_payment_safe.'
        );
    END IF;
    IF v_payment.status <> 'completed' OR NOT (v_payment.amount > 0 AND v_payment.amount <> 'NaN') THEN
        PERFORM crm_private.conflict(
            'payment_transition', format('only a completed payment is reversed; this one is %s', v_payment.status),
            jsonb_build_object(
                'field', 'p_payment_id', 'found', v_payment.status, 'accepted', 'completed', 'id', v_payment.id
            ),
            'Cancel an open payment: update_payment_status_safe.'
        );
    END IF;
    IF EXISTS (
        SELECT FROM public.payments p
        WHERE p.related_payment_id = v_payment.id AND p.role = 'supplier_payment' AND p.direction = 'incoming'
            AND p.status IN ('planned', 'pending', 'completed') AND p.reverses IS NULL
            AND NOT EXISTS (SELECT FROM public.payments r WHERE r.reverses = p.id)
    ) THEN
        PERFORM crm_private.conflict(
            'money_back', 'money came back from this payment',
            jsonb_build_object(
                'field', 'p_payment_id', 'found', v_payment.id, 'accepted', 'a payment without money back',
                'id', v_payment.id
            ),
            'Reverse or cancel the money back first: reverse_payment_safe, update_payment_status_safe.'
        );
    END IF;

    INSERT INTO public.payments (
        order_id, direction, role, method, amount, currency, status, reverses, created_by
    )
    VALUES (
        v_payment.order_id,
        CASE v_payment.direction WHEN 'incoming' THEN 'outgoing' ELSE 'incoming' END::public.payment_direction_enum,
        v_payment.role, v_payment.method, v_payment.amount, v_payment.currency, 'completed', v_payment.id, v_actor.id
    )
    RETURNING * INTO v_reversal;
    IF v_payment.direction = 'incoming' AND v_payment.role IN ('client_payment', 'supplier_payment') THEN
        PERFORM crm_private.check_covered(v_order);
    END IF;
    PERFORM crm_private.audit(
        v_actor.id, 'create', 'payments', v_reversal.id, v_reversal, jsonb_build_object('reason', v_reason)
    );
    v_result := crm_private.apply_payment(v_order, v_reversal, v_actor.id);
    RETURN v_result || jsonb_build_object(
        'reverses', v_payment.id, 'rebooked',
        CASE
            WHEN v_right.id IS NOT NULL
                THEN crm_private.rebook_payment(v_payment, v_right, v_actor, v_reason)
        END
    );
END
$$;
COMMENT ON FUNCTION public.reverse_payment_safe IS
    E'Takes back a completed payment that was booked by mistake, and can book it on the right order in the same call.\n'
    'Rules: admins only, with a reason; the reversal has the same role, method, amount and currency, and the opposite '
    'direction; it subtracts in every sum; it is never reversed itself; the order''s status is not moved back; refunds '
    'and payouts must stay covered by client money, and money that came back from a supplier payment is reversed '
    'before it. p_rebook_order_id books the same facts on that order, with the effects and rules of '
    'record_generic_payment_safe, and moves the reference there: its provider''s repeats return the new payment. A '
    'repeated call returns the first reversal with duplicate true. The result''s id is the reversal''s; rebooked is '
    'the new payment''s result.\n'
    'Errors: 42501 actor unknown, inactive or not an admin; PT422 an argument is missing, p_rebook_order_id is the '
    'payment''s own order; PT404 no such payment or order; PT409 payment not completed, a reversal, or reversed with '
    'another p_rebook_order_id; refunds or payouts left uncovered; money back not reversed; what '
    'record_generic_payment_safe refuses on the other order.';

SELECT crm_private.close_functions('public', ARRAY['crm_app', crm_private.owner()]);
RESET ROLE;
REVOKE CREATE ON SCHEMA public, crm_private FROM crm_rpc;
REVOKE crm_rpc FROM CURRENT_USER;
