-- Completed payments in and out by month and currency.
SELECT month, currency, money_in, money_out, money_in - money_out AS net, payments
FROM reporting.money_by_month
WHERE month BETWEEN date_trunc('month', $__timeFrom()::date)::date AND $__timeTo()::date
ORDER BY month DESC, currency
