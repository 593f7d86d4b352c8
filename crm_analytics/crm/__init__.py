"""The CRM domain: RPC client, migration and adoption, and the proof that the guards hold."""

from crm_analytics.crm.client import CrmResult
from crm_analytics.crm.errors import (
    Busy,
    Conflict,
    CrmError,
    Forbidden,
    Invalid,
    Malformed,
    NotFound,
    WrongIsolation,
)
from crm_analytics.crm.rpc_methods import CrmClient

__all__ = [
    "Busy",
    "Conflict",
    "CrmClient",
    "CrmError",
    "CrmResult",
    "Forbidden",
    "Invalid",
    "Malformed",
    "NotFound",
    "WrongIsolation",
]
