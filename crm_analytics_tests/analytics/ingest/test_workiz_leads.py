"""Leads of the field-service CRM: their export, what the API returns, and what tells them from other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics_tests.analytics.ingest.landing_folder import Landing, local_file
from crm_analytics_tests.analytics.ingest.samples import day, read_text, utc
from crm_analytics_tests.analytics.ingest.test_file_kind import LEADS_HEADER, LEADS_RECORD

EXPORT = f"""{LEADS_HEADER}
{LEADS_RECORD}
803,Canceled,,Pro Referral,Client B,,,COD Service,5550100002,Sun Dec 14 2025,,0,,b@example.org,1867,North,0,0,,Agent,,\
LAAAA2,Client,B,
800,Canceled,,,Client C,,,Repair,5550100003,Sat Dec 13 2025,Tess,0,Mon Dec 15 2025,c@example.org,2180,North,1,85,\
Tue Dec 16 2025,Agent,,LAAAA3,Client,C,
799,Passed,,Rely,Client D,,,INS Service,5550100004,Fri Dec 12 2025,,0,,d@example.org,2180,North,,0,,Agent,,LAAAA4,\
Client,D,
"""
API_LEAD = {
    "UUID": "LAAAA1",
    "SerialId": 807,
    "LeadDateTime": "2025-12-17 10:00:00",
    "LeadEndDateTime": "2025-12-17 12:00:00",
    "CreatedDate": "2025-12-16 23:30:00",
    "LastStatusUpdate": None,
    "Status": "Open",
    "SubStatus": "",
    "JobType": "COD Service",
    "JobSource": "Pro Referral",
    "ServiceArea": "North",
    "Team": [{"id": 1, "Name": "Tess"}],
    "Tags": [],
    "Phone": "5550100001",
    "Address": "1 Main St",
    "City": "Springfield",
    "PostalCode": "02420",
    "Comments": "",
}


def test_export_is_loaded(landing: Landing) -> None:
    """Ids, numbers, days and conversions are read; a blank cell of Converted is no."""
    landing.write("Import Leads-2025-12-16T18_06_04.452Z.csv", EXPORT)
    loaded = landing.load_one("workiz_leads")
    assert (loaded.counts.inserted, loaded.warnings) == (4, [])
    assert landing.rows(
        "SELECT lead_id, lead_number, lead_date, status, source, job_type, assigned, converted, converted_at, zip,"
        " service_area, scheduled_at FROM raw.workiz_leads ORDER BY lead_id"
    ) == [
        (
            *("LAAAA1", "807", day("2025-12-16"), "in progress", "Pro Referral", "COD Service"),
            *(None, False, None, "2420", "North", None),
        ),
        (
            *("LAAAA2", "803", day("2025-12-14"), "Canceled", "Pro Referral", "COD Service"),
            *(None, False, None, "1867", "North", None),
        ),
        (
            *("LAAAA3", "800", day("2025-12-13"), "Canceled", None, "Repair"),
            *("Tess", True, utc(2025, 12, 16, 5), "2180", "North", utc(2025, 12, 15, 5)),
        ),
        (
            *("LAAAA4", "799", day("2025-12-12"), "Passed", "Rely", "INS Service"),
            *(None, False, None, "2180", "North", None),
        ),
    ]


def test_lead_of_the_api(tmp_path: Path) -> None:
    """The API's names are headers, its times are those of the business, and it doesn't say what was converted."""
    whole = read_text(tmp_path, "workiz_leads", json.dumps(API_LEAD) + "\n")
    assert whole.rows == [
        {
            "record_no": 1,
            "lead_id": "LAAAA1",
            "lead_number": "807",
            "created_at": utc(2025, 12, 17, 4, 30),
            "lead_date": day("2025-12-16"),
            "status": "Open",
            "source": "Pro Referral",
            "job_type": "COD Service",
            "scheduled_at": utc(2025, 12, 17, 15),
            "assigned": "Tess",
            "converted": None,
            "converted_at": None,
            "zip": "02420",
            "service_area": "North",
        }
    ]
    assert detect_source(local_file(tmp_path / "export.csv", tmp_path)).name == "workiz_leads"


def test_api_after_an_export_changes_the_same_lead(landing: Landing) -> None:
    """Both forms have one key, so a lead counts once."""
    landing.write("workiz_leads/1.csv", EXPORT, day=1)
    landing.write("workiz_leads/2.jsonl", json.dumps(API_LEAD) + "\n", day=2)
    assert [file.counts.inserted for file in landing.load("workiz_leads").files] == [4, 0]
    assert landing.rows("SELECT status, zip FROM raw.workiz_leads WHERE lead_id = 'LAAAA1'") == [
        ("Open", "02420")
    ]


@pytest.mark.parametrize(
    ("cell", "converted"),
    [("0", False), ("No", False), ("", False), ("FALSE", False), ("1", True), ("yes", True), ("3504", True)],
)
def test_converted(cell: str, converted: bool, tmp_path: Path) -> None:
    """A number of jobs, a job's number and a word all say yes."""
    content = f"Lead #,UUID,Created,Status,Source,Converted\n7,A,2025-12-01,Open,Rely,{cell}\n"
    assert [row["converted"] for row in read_text(tmp_path, "workiz_leads", content).rows] == [converted]
