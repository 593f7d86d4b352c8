-- Options of the variable month: the current one first, then backwards; months still to come last.
SELECT to_char(month, 'YYYY-MM') AS month
FROM reporting.months
ORDER BY month > month_of(today()), month DESC
