-- Options of the variable month: the current month first, then earlier ones; future months last.
SELECT to_char(month, 'YYYY-MM') AS month
FROM reporting.months
ORDER BY month > month_of(today()), month DESC
