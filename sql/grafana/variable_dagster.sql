-- Where the Dagster UI is, for links.
SELECT dagster_url FROM reporting.deployment
