-- The CRM's nine tables as production has them: its DDL word for word, in an order that runs. The DDL came without the
-- enum types, so these stand in for a database that has grown: labels in another order, some missing, some extra.

create type public.preferred_channel_enum as enum ('whatsapp', 'telegram', 'email', 'viber');
create type public.document_type_enum as enum ('passport', 'invoice', 'receipt');
create type public.lead_status_enum as enum ('new', 'in_progress', 'rejected', 'converted');
create type public.order_status_enum as enum ('awaiting_payment', 'paid', 'in_delivery', 'delivered', 'closed', 'cancelled', 'on_hold');
create type public.payment_direction_enum as enum ('outgoing', 'incoming');
create type public.payment_role_enum as enum ('client_payment', 'supplier_payment', 'refund', 'bonus');
create type public.payment_method_enum as enum ('card', 'cash', 'bank_transfer');
create type public.currency_enum as enum ('RUB', 'EUR', 'GBP');
create type public.payment_status_enum as enum ('planned', 'completed', 'failed');
create type public.shipment_provider_enum as enum ('rusbid', 'ruspost', 'dhl');
create type public.user_role_enum as enum ('manager', 'admin');

create table public.users (
  id uuid not null default gen_random_uuid (),
  name text not null,
  role public.user_role_enum not null default 'manager'::user_role_enum,
  active boolean not null default true,
  created_at timestamp with time zone not null default now(),
  constraint users_pkey primary key (id)
) TABLESPACE pg_default;
create index IF not exists idx_users_active on public.users using btree (active) TABLESPACE pg_default;

create table public.customers (
  id uuid not null default gen_random_uuid (),
  full_name text not null,
  phone text null,
  email text null,
  preferred_channel public.preferred_channel_enum null default 'telegram'::preferred_channel_enum,
  country text null,
  created_at timestamp with time zone not null default now(),
  constraint customers_pkey primary key (id)
) TABLESPACE pg_default;
create index IF not exists idx_customers_created on public.customers using btree (created_at) TABLESPACE pg_default;

create table public.leads (
  id uuid not null default gen_random_uuid (),
  source text not null,
  customer_id uuid null,
  bike_url text null,
  bike_snapshot jsonb null,
  customer_comment text null,
  estimated_budget_eur integer null,
  status public.lead_status_enum not null default 'new'::lead_status_enum,
  created_at timestamp with time zone not null default now(),
  constraint leads_pkey primary key (id),
  constraint leads_customer_id_fkey foreign KEY (customer_id) references customers (id) on delete set null
) TABLESPACE pg_default;
create index IF not exists idx_leads_status_created on public.leads using btree (status, created_at) TABLESPACE pg_default;

create table public.orders (
  id uuid not null default gen_random_uuid (),
  order_code text not null,
  customer_id uuid null,
  lead_id uuid null,
  bike_url text null,
  bike_snapshot jsonb null,
  final_price_eur numeric(12, 2) null,
  commission_eur numeric(12, 2) null,
  status public.order_status_enum not null default 'awaiting_payment'::order_status_enum,
  assigned_manager uuid null,
  created_at timestamp with time zone not null default now(),
  constraint orders_pkey primary key (id),
  constraint orders_order_code_key unique (order_code),
  constraint orders_assigned_manager_fkey foreign KEY (assigned_manager) references users (id) on delete set null,
  constraint orders_customer_id_fkey foreign KEY (customer_id) references customers (id) on delete set null,
  constraint orders_lead_id_fkey foreign KEY (lead_id) references leads (id) on delete set null,
  constraint chk_final_price_nonneg check (
    (
      (final_price_eur >= (0)::numeric)
      or (final_price_eur is null)
    )
  )
) TABLESPACE pg_default;
create index IF not exists idx_orders_status_created on public.orders using btree (status, created_at) TABLESPACE pg_default;
create index IF not exists idx_orders_order_code on public.orders using btree (order_code) TABLESPACE pg_default;

create table public.documents (
  id uuid not null default gen_random_uuid (),
  order_id uuid null,
  type public.document_type_enum not null,
  file_url text not null,
  uploaded_at timestamp with time zone not null default now(),
  constraint documents_pkey primary key (id),
  constraint documents_order_id_fkey foreign KEY (order_id) references orders (id) on delete CASCADE
) TABLESPACE pg_default;
create index IF not exists idx_documents_order on public.documents using btree (order_id) TABLESPACE pg_default;

create table public.order_status_events (
  id uuid not null default gen_random_uuid (),
  order_id uuid null,
  old_status text null,
  new_status text null,
  changed_by uuid null,
  created_at timestamp with time zone not null default now(),
  constraint order_status_events_pkey primary key (id),
  constraint order_status_events_changed_by_fkey foreign KEY (changed_by) references users (id) on delete set null,
  constraint order_status_events_order_id_fkey foreign KEY (order_id) references orders (id) on delete CASCADE
) TABLESPACE pg_default;
create index IF not exists idx_order_status_events_order on public.order_status_events using btree (order_id) TABLESPACE pg_default;

create table public.payments (
  id uuid not null default gen_random_uuid (),
  order_id uuid null,
  direction public.payment_direction_enum not null,
  role public.payment_role_enum not null,
  method public.payment_method_enum not null,
  amount numeric(12, 2) not null,
  currency public.currency_enum not null,
  status public.payment_status_enum not null default 'planned'::payment_status_enum,
  external_reference text null,
  related_payment_id uuid null,
  created_at timestamp with time zone not null default now(),
  constraint payments_pkey primary key (id),
  constraint payments_order_id_fkey foreign KEY (order_id) references orders (id) on delete CASCADE,
  constraint payments_related_payment_id_fkey foreign KEY (related_payment_id) references payments (id) on delete set null,
  constraint chk_amount_positive check ((amount >= (0)::numeric))
) TABLESPACE pg_default;
create index IF not exists idx_payments_order on public.payments using btree (order_id) TABLESPACE pg_default;
create index IF not exists idx_payments_status on public.payments using btree (status) TABLESPACE pg_default;

create table public.shipments (
  id uuid not null default gen_random_uuid (),
  order_id uuid null,
  provider public.shipment_provider_enum not null default 'rusbid'::shipment_provider_enum,
  tracking_number text null,
  warehouse_received boolean null default false,
  warehouse_photos_received boolean null default false,
  client_received boolean null default false,
  estimated_delivery_date date null,
  ruspost_status jsonb null,
  ruspost_last_update timestamp with time zone null,
  created_at timestamp with time zone not null default now(),
  constraint shipments_pkey primary key (id),
  constraint shipments_order_id_fkey foreign KEY (order_id) references orders (id) on delete CASCADE
) TABLESPACE pg_default;
create index IF not exists idx_shipments_tracking on public.shipments using btree (tracking_number) TABLESPACE pg_default;
create index IF not exists idx_shipments_order on public.shipments using btree (order_id) TABLESPACE pg_default;

create table public.tasks (
  id uuid not null default gen_random_uuid (),
  order_id uuid null,
  title text not null,
  description text null,
  due_at timestamp with time zone null,
  completed boolean null default false,
  assigned_to uuid null,
  created_at timestamp with time zone not null default now(),
  constraint tasks_pkey primary key (id),
  constraint tasks_assigned_to_fkey foreign KEY (assigned_to) references users (id) on delete set null,
  constraint tasks_order_id_fkey foreign KEY (order_id) references orders (id) on delete CASCADE
) TABLESPACE pg_default;
create index IF not exists idx_tasks_order on public.tasks using btree (order_id) TABLESPACE pg_default;
