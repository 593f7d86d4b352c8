"""The CRM domain: RPC client, migration and adoption, and the proof that the guards hold."""

from crm_analytics.crm.client import CrmResult
from crm_analytics.crm.errors import Conflict, CrmError, Forbidden, Invalid, NotFound
from crm_analytics.crm.rpc_methods import CrmClient

__all__ = ["Conflict", "CrmClient", "CrmError", "CrmResult", "Forbidden", "Invalid", "NotFound"]
