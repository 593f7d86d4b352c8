-- Completed payments in and out by month and currency.
SELECT to_char(month, 'YYYY-MM') AS month, currency, money_in, money_out, money_in - money_out AS net, payments
FROM reporting.money_by_month
WHERE month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
ORDER BY month DESC, currency
