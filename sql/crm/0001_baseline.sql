-- Baseline: the nine tables exactly as production has them (seed DDL: names, types, defaults, constraints, indexes).
-- A database that already has them is compared with this file instead of running it: docs/decisions/adoption.md.
-- The enum types start with the labels that the DDL itself uses; 0002 adds all others.

CREATE TYPE public.preferred_channel_enum AS ENUM ('telegram');
CREATE TYPE public.document_type_enum AS ENUM ();
CREATE TYPE public.lead_status_enum AS ENUM ('new');
CREATE TYPE public.order_status_enum AS ENUM ('awaiting_payment');
CREATE TYPE public.payment_direction_enum AS ENUM ();
CREATE TYPE public.payment_role_enum AS ENUM ();
CREATE TYPE public.payment_method_enum AS ENUM ();
CREATE TYPE public.currency_enum AS ENUM ();
CREATE TYPE public.payment_status_enum AS ENUM ('planned');
CREATE TYPE public.shipment_provider_enum AS ENUM ('rusbid');
CREATE TYPE public.user_role_enum AS ENUM ('manager');

CREATE TABLE public.users (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    name text NOT NULL,
    role public.user_role_enum NOT NULL DEFAULT 'manager'::public.user_role_enum,
    active boolean NOT NULL DEFAULT true,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT users_pkey PRIMARY KEY (id)
);
CREATE INDEX idx_users_active ON public.users USING btree (active);

CREATE TABLE public.customers (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    full_name text NOT NULL,
    phone text NULL,
    email text NULL,
    preferred_channel public.preferred_channel_enum NULL DEFAULT 'telegram'::public.preferred_channel_enum,
    country text NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT customers_pkey PRIMARY KEY (id)
);
CREATE INDEX idx_customers_created ON public.customers USING btree (created_at);

CREATE TABLE public.leads (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    source text NOT NULL,
    customer_id uuid NULL,
    bike_url text NULL,
    bike_snapshot jsonb NULL,
    customer_comment text NULL,
    estimated_budget_eur integer NULL,
    status public.lead_status_enum NOT NULL DEFAULT 'new'::public.lead_status_enum,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT leads_pkey PRIMARY KEY (id),
    CONSTRAINT leads_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES public.customers (id) ON DELETE SET NULL
);
CREATE INDEX idx_leads_status_created ON public.leads USING btree (status, created_at);

CREATE TABLE public.orders (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    order_code text NOT NULL,
    customer_id uuid NULL,
    lead_id uuid NULL,
    bike_url text NULL,
    bike_snapshot jsonb NULL,
    final_price_eur numeric(12, 2) NULL,
    commission_eur numeric(12, 2) NULL,
    status public.order_status_enum NOT NULL DEFAULT 'awaiting_payment'::public.order_status_enum,
    assigned_manager uuid NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT orders_pkey PRIMARY KEY (id),
    CONSTRAINT orders_order_code_key UNIQUE (order_code),
    CONSTRAINT orders_assigned_manager_fkey FOREIGN KEY (assigned_manager)
        REFERENCES public.users (id) ON DELETE SET NULL,
    CONSTRAINT orders_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES public.customers (id) ON DELETE SET NULL,
    CONSTRAINT orders_lead_id_fkey FOREIGN KEY (lead_id) REFERENCES public.leads (id) ON DELETE SET NULL,
    CONSTRAINT chk_final_price_nonneg CHECK (((final_price_eur >= (0)::numeric) OR (final_price_eur IS NULL)))
);
CREATE INDEX idx_orders_status_created ON public.orders USING btree (status, created_at);
CREATE INDEX idx_orders_order_code ON public.orders USING btree (order_code);

CREATE TABLE public.documents (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    order_id uuid NULL,
    type public.document_type_enum NOT NULL,
    file_url text NOT NULL,
    uploaded_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT documents_pkey PRIMARY KEY (id),
    CONSTRAINT documents_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders (id) ON DELETE CASCADE
);
CREATE INDEX idx_documents_order ON public.documents USING btree (order_id);

CREATE TABLE public.order_status_events (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    order_id uuid NULL,
    old_status text NULL,
    new_status text NULL,
    changed_by uuid NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT order_status_events_pkey PRIMARY KEY (id),
    CONSTRAINT order_status_events_changed_by_fkey FOREIGN KEY (changed_by)
        REFERENCES public.users (id) ON DELETE SET NULL,
    CONSTRAINT order_status_events_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders (id) ON DELETE CASCADE
);
CREATE INDEX idx_order_status_events_order ON public.order_status_events USING btree (order_id);

CREATE TABLE public.payments (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    order_id uuid NULL,
    direction public.payment_direction_enum NOT NULL,
    role public.payment_role_enum NOT NULL,
    method public.payment_method_enum NOT NULL,
    amount numeric(12, 2) NOT NULL,
    currency public.currency_enum NOT NULL,
    status public.payment_status_enum NOT NULL DEFAULT 'planned'::public.payment_status_enum,
    external_reference text NULL,
    related_payment_id uuid NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT payments_pkey PRIMARY KEY (id),
    CONSTRAINT payments_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders (id) ON DELETE CASCADE,
    CONSTRAINT payments_related_payment_id_fkey FOREIGN KEY (related_payment_id)
        REFERENCES public.payments (id) ON DELETE SET NULL,
    CONSTRAINT chk_amount_positive CHECK ((amount >= (0)::numeric))
);
CREATE INDEX idx_payments_order ON public.payments USING btree (order_id);
CREATE INDEX idx_payments_status ON public.payments USING btree (status);

CREATE TABLE public.shipments (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    order_id uuid NULL,
    provider public.shipment_provider_enum NOT NULL DEFAULT 'rusbid'::public.shipment_provider_enum,
    tracking_number text NULL,
    warehouse_received boolean NULL DEFAULT false,
    warehouse_photos_received boolean NULL DEFAULT false,
    client_received boolean NULL DEFAULT false,
    estimated_delivery_date date NULL,
    ruspost_status jsonb NULL,
    ruspost_last_update timestamp with time zone NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT shipments_pkey PRIMARY KEY (id),
    CONSTRAINT shipments_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders (id) ON DELETE CASCADE
);
CREATE INDEX idx_shipments_tracking ON public.shipments USING btree (tracking_number);
CREATE INDEX idx_shipments_order ON public.shipments USING btree (order_id);

CREATE TABLE public.tasks (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    order_id uuid NULL,
    title text NOT NULL,
    description text NULL,
    due_at timestamp with time zone NULL,
    completed boolean NULL DEFAULT false,
    assigned_to uuid NULL,
    created_at timestamp with time zone NOT NULL DEFAULT now(),
    CONSTRAINT tasks_pkey PRIMARY KEY (id),
    CONSTRAINT tasks_assigned_to_fkey FOREIGN KEY (assigned_to) REFERENCES public.users (id) ON DELETE SET NULL,
    CONSTRAINT tasks_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders (id) ON DELETE CASCADE
);
CREATE INDEX idx_tasks_order ON public.tasks USING btree (order_id);
