-- Raw tables against metrics for the chosen month: differences must be 0 unless the month is stale.
SELECT measure, expected, found, difference
FROM reporting.reconciliation(to_date(${month:sqlstring}, 'YYYY-MM'))
