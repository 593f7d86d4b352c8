-- Clients' money by month and currency: received, refunded, paid out, and what is left.
SELECT to_char(month, 'YYYY-MM') AS month, currency, client_paid, refunded, paid_out, held
FROM reporting.client_money_by_month
WHERE month BETWEEN reporting.first_month($__timeFrom())
    AND reporting.last_month($__timeFrom(), $__timeTo())
ORDER BY month DESC, currency
