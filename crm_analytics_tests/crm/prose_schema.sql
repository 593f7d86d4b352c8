-- Turns production's tables (seed_schema.sql) into what the requirements' text describes: its words for columns, the
-- columns that the DDL lacks, and an audit_log and a user_identity_map of an older application. Run by their owner.

ALTER TABLE public.orders RENAME COLUMN order_code TO order_number;
ALTER TABLE public.orders RENAME CONSTRAINT orders_order_code_key TO orders_order_number_key;
ALTER TABLE public.orders
    ADD COLUMN items jsonb, ADD COLUMN total_amount numeric(12, 2), ADD COLUMN currency public.currency_enum,
    ADD COLUMN created_by uuid REFERENCES public.users (id), ADD COLUMN updated_by uuid, ADD COLUMN updated_at timestamptz;
ALTER TABLE public.leads RENAME COLUMN customer_comment TO description;
ALTER TABLE public.leads
    ADD COLUMN contact text, ADD COLUMN notes text, ADD COLUMN assigned_to uuid, ADD COLUMN updated_at timestamptz;
ALTER TABLE public.payments ADD COLUMN created_by uuid;
ALTER TABLE public.users ADD COLUMN email text;
ALTER TABLE public.customers ADD COLUMN billing_address jsonb;
ALTER TABLE public.order_status_events RENAME COLUMN changed_by TO actor_id;
ALTER TABLE public.order_status_events
    RENAME CONSTRAINT order_status_events_changed_by_fkey TO order_status_events_actor_id_fkey;
ALTER TABLE public.documents RENAME COLUMN type TO document_type;
ALTER TABLE public.documents RENAME COLUMN file_url TO storage_url;
ALTER TABLE public.documents RENAME COLUMN uploaded_at TO created_at;
ALTER TABLE public.documents ADD COLUMN uploaded_by uuid;
ALTER TABLE public.tasks RENAME COLUMN assigned_to TO assignee_id;
ALTER TABLE public.tasks ADD COLUMN created_by uuid, ADD COLUMN status text NOT NULL DEFAULT 'open';
ALTER TABLE public.shipments RENAME COLUMN provider TO carrier;
ALTER TABLE public.shipments ADD COLUMN status text;

CREATE TABLE public.audit_log (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), actor_id uuid REFERENCES public.users (id), action text NOT NULL,
    entity text NOT NULL, entity_id text, payload jsonb, created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idx_audit_log_entity ON public.audit_log (entity, entity_id);
CREATE TABLE public.user_identity_map (
    id serial PRIMARY KEY, provider text NOT NULL, external_id text NOT NULL, crm_user_id uuid REFERENCES public.users (id),
    created_at timestamptz DEFAULT now()
);
