"""The ground that both domains stand on: settings, databases, migrations, months."""

DATABASES = ("analytics", "crm", "dagster")
