"""Names of all advisory locks.

A lock's key is its hashed name: `hashtextextended(name, 0)`. Python takes those that have a
constant or function here, SQL takes these:

- `analytics:payment_links`: while payments are linked to jobs (raw.lock_links)
- `analytics:source_names`: while names of new sources are noted (analytics.note_source_names)
- `analytics:channel_rules`: while channels' rules and names are checked against the others
  (analytics.one_channel_per_shared_rule, analytics.one_spelling_per_name)
- `crm:customer:phone:<digits>`, `crm:customer:email:<address>`: while a lead finds or creates its customer
- `crm:checkout:<reference>`: while a checkout looks for an earlier one with its payment reference
- `crm:set_user_active`: while a user is activated or deactivated
"""

from __future__ import annotations

from datetime import date

#: One migration at a time per database.
MIGRATION = "migration"
#: One demo at a time writes CRM activity.
DEMO_ACTIVITY = "crm:demo_activity"


def run_worker(run_id: str) -> str:
    """Returns the lock that a run's worker holds in Dagster's database for as long as it lives."""
    return f"dagster:run:{run_id}"


def load(source: str) -> str:
    """Returns the lock of a source's loads: one at a time."""
    return f"analytics:load:{source}"


def month(month: date) -> str:
    """Returns the lock of a month's metrics: one refresh at a time."""
    return f"analytics:month:{month:%Y-%m}"
