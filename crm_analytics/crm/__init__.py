"""The CRM database: migration and adoption, RPC client, and the proof that its guards hold. No Dagster here."""

from crm_analytics.crm.client import CrmClient, CrmResult
from crm_analytics.crm.errors import Conflict, CrmError, Forbidden, Invalid, NotFound
from crm_analytics.crm.migrate import migrate_crm

__all__ = [
    "Conflict",
    "CrmClient",
    "CrmError",
    "CrmResult",
    "Forbidden",
    "Invalid",
    "NotFound",
    "migrate_crm",
]
