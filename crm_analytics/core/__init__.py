"""The ground that both domains stand on: settings, databases, migrations, months."""

DATABASES = ("analytics", "crm", "dagster")
#: The embedded server's superuser and only login.
EMBEDDED_LOGIN = "postgres"
