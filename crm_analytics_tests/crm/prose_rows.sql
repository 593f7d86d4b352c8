-- What eight years add to the rows of test_adoption.FILL in a database as the text describes it: totals and actors, a
-- journal with rows about orders that were deleted since, identities of people who left, and contacts as people type them.

UPDATE public.users SET email = 'User' || right(name, 2) || '@Example.com' WHERE name < 'User 2';
UPDATE public.orders SET total_amount = final_price_eur, currency = 'EUR', items = '[{"model": "Gravel 54", "qty": 1}]'
WHERE final_price_eur > 5000;
UPDATE public.orders SET total_amount = 900000, currency = 'RUB' WHERE final_price_eur IS NULL AND right(order_number, 1) = '6';
UPDATE public.orders SET created_by = md5('user1')::uuid WHERE right(order_number, 1) = '1';
UPDATE public.tasks SET status = CASE WHEN completed THEN 'done' ELSE 'open' END;
UPDATE public.leads SET contact = '@lead' || estimated_budget_eur WHERE estimated_budget_eur % 3 = 0;
UPDATE public.customers SET
    phone = (ARRAY[
        '8 (912) 345-67-89', '+7 912 345 67 89', '0049 30 1234567', '+49 30 1234567 доб. 12', 'нет', '', '  ', '+1 555 0100 / +1 555 0101'
    ])[1 + length(full_name || email) % 8],
    email = (ARRAY['Olga@Example.com ', 'olga@example.com', NULL, 'olga at example', '', 'a@b, c@d'])[1 + length(full_name) % 6]
WHERE md5(id::text) < '8';
INSERT INTO public.audit_log (actor_id, action, entity, entity_id, payload, created_at)
SELECT
    CASE WHEN n % 5 > 0 THEN md5('user' || 1 + n % 20)::uuid END, (ARRAY['create', 'status_change', 'payment'])[1 + n % 3],
    (ARRAY['orders', 'payments', 'Order'])[1 + n % 3],
    CASE n % 4 WHEN 0 THEN md5('gone' || n)::uuid::text WHEN 1 THEN '#' || n ELSE md5('order' || n)::uuid::text END,
    jsonb_build_object('n', n, 'old', NULL), timestamptz '2019-01-01' + n * interval '1 hour'
FROM generate_series(1, 5000) n;
INSERT INTO public.user_identity_map (provider, external_id, crm_user_id)
SELECT 'keycloak', 'sub-' || n, CASE WHEN n < 20 THEN md5('user' || n)::uuid END FROM generate_series(1, 22) n;
INSERT INTO public.user_identity_map (provider, external_id, crm_user_id) VALUES ('keycloak', 'sub-1', md5('user2')::uuid);
