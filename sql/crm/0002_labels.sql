-- Labels: every label that the requirements name, in a file of its own because a label can't be used in the transaction
-- that adds it. An adopted database may have some of them, in any order, and others as well, which stay.

ALTER TYPE public.preferred_channel_enum ADD VALUE IF NOT EXISTS 'telegram';
ALTER TYPE public.preferred_channel_enum ADD VALUE IF NOT EXISTS 'whatsapp';
ALTER TYPE public.preferred_channel_enum ADD VALUE IF NOT EXISTS 'phone';
ALTER TYPE public.preferred_channel_enum ADD VALUE IF NOT EXISTS 'email';

ALTER TYPE public.document_type_enum ADD VALUE IF NOT EXISTS 'passport';
ALTER TYPE public.document_type_enum ADD VALUE IF NOT EXISTS 'invoice';
ALTER TYPE public.document_type_enum ADD VALUE IF NOT EXISTS 'waybill';
ALTER TYPE public.document_type_enum ADD VALUE IF NOT EXISTS 'contract';
ALTER TYPE public.document_type_enum ADD VALUE IF NOT EXISTS 'customs';
ALTER TYPE public.document_type_enum ADD VALUE IF NOT EXISTS 'photo';
ALTER TYPE public.document_type_enum ADD VALUE IF NOT EXISTS 'other';

ALTER TYPE public.lead_status_enum ADD VALUE IF NOT EXISTS 'new';
ALTER TYPE public.lead_status_enum ADD VALUE IF NOT EXISTS 'in_progress';
ALTER TYPE public.lead_status_enum ADD VALUE IF NOT EXISTS 'converted';
ALTER TYPE public.lead_status_enum ADD VALUE IF NOT EXISTS 'rejected';

ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'created' BEFORE 'awaiting_payment';
ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'awaiting_payment';
ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'paid';
ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'in_delivery';
ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'delivered';
ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'closed';
ALTER TYPE public.order_status_enum ADD VALUE IF NOT EXISTS 'cancelled';

ALTER TYPE public.payment_direction_enum ADD VALUE IF NOT EXISTS 'incoming';
ALTER TYPE public.payment_direction_enum ADD VALUE IF NOT EXISTS 'outgoing';

ALTER TYPE public.payment_role_enum ADD VALUE IF NOT EXISTS 'client_payment';
ALTER TYPE public.payment_role_enum ADD VALUE IF NOT EXISTS 'supplier_payment';
ALTER TYPE public.payment_role_enum ADD VALUE IF NOT EXISTS 'refund';
ALTER TYPE public.payment_role_enum ADD VALUE IF NOT EXISTS 'shipping_payment';
ALTER TYPE public.payment_role_enum ADD VALUE IF NOT EXISTS 'commission';

ALTER TYPE public.payment_method_enum ADD VALUE IF NOT EXISTS 'online_cashbox';
ALTER TYPE public.payment_method_enum ADD VALUE IF NOT EXISTS 'card';
ALTER TYPE public.payment_method_enum ADD VALUE IF NOT EXISTS 'bank_transfer';
ALTER TYPE public.payment_method_enum ADD VALUE IF NOT EXISTS 'cash';
ALTER TYPE public.payment_method_enum ADD VALUE IF NOT EXISTS 'other';

ALTER TYPE public.currency_enum ADD VALUE IF NOT EXISTS 'EUR';
ALTER TYPE public.currency_enum ADD VALUE IF NOT EXISTS 'USD';
ALTER TYPE public.currency_enum ADD VALUE IF NOT EXISTS 'RUB';

ALTER TYPE public.payment_status_enum ADD VALUE IF NOT EXISTS 'planned';
ALTER TYPE public.payment_status_enum ADD VALUE IF NOT EXISTS 'pending';
ALTER TYPE public.payment_status_enum ADD VALUE IF NOT EXISTS 'completed';
ALTER TYPE public.payment_status_enum ADD VALUE IF NOT EXISTS 'failed';
ALTER TYPE public.payment_status_enum ADD VALUE IF NOT EXISTS 'cancelled';

ALTER TYPE public.shipment_provider_enum ADD VALUE IF NOT EXISTS 'rusbid';
ALTER TYPE public.shipment_provider_enum ADD VALUE IF NOT EXISTS 'ruspost';
ALTER TYPE public.shipment_provider_enum ADD VALUE IF NOT EXISTS 'cdek';
ALTER TYPE public.shipment_provider_enum ADD VALUE IF NOT EXISTS 'other';

ALTER TYPE public.user_role_enum ADD VALUE IF NOT EXISTS 'manager';
ALTER TYPE public.user_role_enum ADD VALUE IF NOT EXISTS 'admin';
