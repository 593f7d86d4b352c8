"""The registry: every source by its name, in the order in which people are told about them."""

from __future__ import annotations

from crm_analytics.analytics.ingest.sources.calls import CALLS
from crm_analytics.analytics.ingest.sources.declaration import Source
from crm_analytics.analytics.ingest.sources.elocals_leads import ELOCALS_LEADS
from crm_analytics.analytics.ingest.sources.google_spend import GOOGLE_SPEND
from crm_analytics.analytics.ingest.sources.jobs import JOBS
from crm_analytics.analytics.ingest.sources.payments import PAYMENTS
from crm_analytics.analytics.ingest.sources.proref_leads import PROREF_LEADS
from crm_analytics.analytics.ingest.sources.targets import TARGETS
from crm_analytics.analytics.ingest.sources.workiz_leads import WORKIZ_LEADS

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        JOBS,
        PAYMENTS,
        CALLS,
        ELOCALS_LEADS,
        PROREF_LEADS,
        WORKIZ_LEADS,
        GOOGLE_SPEND,
        TARGETS,
    )
}
