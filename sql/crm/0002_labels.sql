-- Labels: every label that the requirements name, in a file of its own because a label can't be used in the transaction
-- that adds it. An adopted database may have some of them, in any order, and others as well, which stay.

ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'created' BEFORE 'awaiting_payment';

DO $$
DECLARE
    v_type record;
    v_label text;
BEGIN
    FOR v_type IN
        SELECT * FROM (VALUES
            ('preferred_channel_enum', '{telegram, whatsapp, phone, email}'::text[]),
            ('document_type_enum', '{passport, invoice, waybill, contract, customs, photo, other}'),
            ('lead_status_enum', '{new, in_progress, converted, rejected}'),
            ('order_status_enum', '{created, awaiting_payment, paid, in_delivery, delivered, closed, cancelled}'),
            ('payment_direction_enum', '{incoming, outgoing}'),
            ('payment_role_enum', '{client_payment, supplier_payment, refund, shipping_payment, commission}'),
            ('payment_method_enum', '{online_cashbox, card, bank_transfer, cash, other}'),
            ('currency_enum', '{EUR, USD, RUB}'),
            ('payment_status_enum', '{planned, pending, completed, failed, cancelled}'),
            ('shipment_provider_enum', '{rusbid, ruspost, cdek, other}'),
            ('user_role_enum', '{manager, admin}')
        ) AS types (name, labels)
    LOOP
        FOREACH v_label IN ARRAY v_type.labels LOOP
            EXECUTE format('ALTER TYPE public.%I ADD VALUE IF NOT EXISTS %L', v_type.name, v_label);
        END LOOP;
    END LOOP;
END
$$;
