"""Amounts are dollars: a record in another currency is quarantined instead of being added to them."""

from __future__ import annotations

import pytest

from crm_analytics_tests.analytics.ingest.landing_folder import Landing

MONTH = '"October 1, 2025 - October 31, 2025"\n'
FILES = {
    "google_spend": MONTH + "Campaign,Currency code,Cost\nBrand,USD,100.00\nParts,GBP,50.00\nOvens, usd ,7.00\n",
    "payments": "Payment ID,Job #,Date,Amount,Currency\nP1,1,2025-10-04,100,USD\nP2,2,2025-10-04,50,eur\nP3,3,2025-10-04,7,\n",
    "elocals_leads": "Unique ID,Time,Cost,Currency\nL1,2025-10-04 10:00:00,100,$\nL2,2025-10-04 10:00:00,50,CAD\n"
    "L3,2025-10-04 10:00:00,7,US$\n",
}  # fmt: skip


@pytest.mark.parametrize("source", FILES)
def test_record_in_another_currency_is_quarantined(source: str, landing: Landing) -> None:
    """Its amount isn't added to dollars; its neighbors load, also where the cell is blank."""
    landing.write(f"{source}/export.csv", FILES[source])
    loaded = landing.load_one(source)
    assert (loaded.counts.inserted, loaded.counts.quarantined) == (2, 1)
    column = "cost" if source == "elocals_leads" else "amount"
    assert landing.rows(f"SELECT sum({column})::text FROM raw.{source}") == [("107.00",)]
    ((line, reason),) = landing.rows("SELECT line_no, raw.reason_text(reasons -> 0) FROM raw.rejected_rows")
    assert line == (4 if source == "google_spend" else 3)
    assert reason.endswith(
        ": not in dollars; accepted: USD or blank; convert the amounts to dollars, or leave these records out"
    )


def test_report_whose_total_mixes_currencies_is_refused(landing: Landing) -> None:
    """A report that replaces a month isn't loaded without the records that its total counts."""
    landing.write("google_spend/export.csv", FILES["google_spend"] + "Total: Account,--,157.00\n")
    refused = landing.load_one("google_spend")
    assert refused.status == "refused" and "157.00" in (refused.message or "")
    assert "GBP" in (refused.message or "")
    assert landing.table("raw.google_spend") == []
