"""JSON Lines and gzip: read like CSV, with the keys of all records as the header."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading.open_file import open_file
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics.analytics.ingest.sources.registry import SOURCES
from crm_analytics_tests.analytics.ingest.landing_folder import JOBS, NEW_YORK, Landing, job, local_file, text
from crm_analytics_tests.analytics.ingest.samples import EXPORTED_AT, day, read_text, utc, workbook_bytes
from crm_analytics_tests.chance import examples

#: A job as the API returns it.
API_JOB: dict[str, Any] = {
    "UUID": "AB12CD",
    "SerialId": 3504,
    "JobDateTime": "2025-11-20 10:00:00",
    "JobEndDateTime": None,
    "CreatedDate": "2025-11-19 23:30:00",
    "PaymentDueDate": "2025-12-20 10:00:00",
    "LastStatusUpdate": "2025-11-20 12:00:00",
    "JobTotalPrice": 120.5,
    "JobAmountDue": "0.00",
    "SubTotal": 110,
    "Status": "Done",
    "SubStatus": "",
    "JobType": "COD Service",
    "JobSource": "Google",
    "ServiceArea": "North",
    "Tags": ["vip", "fridge"],
    "Team": [{"id": "7", "Name": "Tess Example"}, {"id": 9, "Name": "Bob Example"}],
    "PostalCode": "01234",
    "City": "Boston",
    "State": "MA",
    "Phone": "5550100001",
    "Email": "a@example.org",
    "Comments": "",
    "Unit": 4,
}


def lines_of(*records: dict[str, Any] | str) -> str:
    """Returns records as JSON Lines; a text is a line as it is."""
    return "".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records)


def changed(**values: Any) -> dict[str, Any]:
    """Returns the job with other values."""
    return API_JOB | values


def column(folder: Path, value: str) -> tuple[Any, list[str]]:
    """Returns what the loader makes of a value, written in JSON, in a column of text; and why it refuses it."""
    line = json.dumps(API_JOB).replace('"Boston"', "0").replace('"MA"', "0")
    whole = read_text(folder, "jobs", line.replace('"Status": "Done"', f'"Status": {value}') + "\n")
    return whole.rows[0]["status"], whole.file.warnings


def why_refused(folder: Path, content: str | bytes, source: str = "jobs") -> str:
    """Returns why a file is refused."""
    with pytest.raises(RefusedFile) as refused:
        read_text(folder, source, content)
    return refused.value.why


def test_a_job_of_the_api_is_a_job(tmp_path: Path) -> None:
    """The API's own field names are headers, and its times without an offset are those of the business."""
    whole = read_text(tmp_path, "jobs", lines_of(API_JOB, changed(UUID="AB12CE", SerialId=3505, Team=[])))
    assert whole.rows[0] == {
        "record_no": 1,
        "job_id": "AB12CD",
        "job_number": "3504",
        "type": "COD Service",
        "source": "Google",
        "status": "Done",
        "created_at": utc(2025, 11, 20, 4, 30),
        "job_date": day("2025-11-19"),
        "scheduled_at": utc(2025, 11, 20, 15),
        "ended_at": None,
        "technician": "Tess Example, Bob Example",
        "zip": "01234",
        "total": "120.5",
    }
    assert whole.rows[1]["technician"] is None
    assert (whole.file.encoding, whole.file.delimiter, whole.file.sheet, whole.file.pull) == (
        "utf-8",
        "",
        None,
        None,
    )
    assert whole.file.located.match.unknown[0] == "PaymentDueDate"


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ('"as it is"', "as it is"),
        ("120.50", "120.50"),
        ("0.1234567890123456789", "0.1234567890123456789"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1.5e3", "1500"),
        ("25E-1", "2.5"),
        ("-0", "-0"),
        ("1e400", "1e400"),
        ("true", "true"),
        ("false", "false"),
        ("null", None),
        ('""', None),
        ("[]", None),
        ('["a", "b", 1.50]', "a, b, 1.50"),
        ('["a", null, "b"]', "a, b"),
        ('[{"id": 1, "name": "Ann"}, {"id": 2, "Name": "Bob"}]', "Ann, Bob"),
        ('[{"id": 1, "name": "Ann"}, {"id": 2}]', '[{"id": 1, "name": "Ann"}, {"id": 2}]'),
        ("[[1.50, true]]", "[[1.50, true]]"),
        ('{"id": 1.50, "Name": "Zo\u00eb"}', '{"id": 1.50, "Name": "Zo\u00eb"}'),
        ('"NUL \\u0000 and half \\ud83d"', "NUL \ufffd and half ?"),
        ('"two\\nlines"', "two\nlines"),
    ],
)
def test_values_become_texts(written: str, stored: str | None, tmp_path: Path) -> None:
    """Numbers stay as they are written, lists are joined, and everything else is JSON."""
    assert column(tmp_path, written) == (stored, [])


json_numbers = st.decimals(
    allow_nan=False, allow_infinity=False, places=2, min_value=-(10**7), max_value=10**7
)


@examples(60)
@given(amounts=st.lists(json_numbers, min_size=1, max_size=20), packed=st.booleans())
def test_amounts_are_exact(
    amounts: list[Decimal], packed: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No amount goes through a float: the cents are those of the service, in a packed file, too."""
    content = lines_of(*(json.dumps(API_JOB).replace("120.5", f"{amount:f}") for amount in amounts)).encode()
    content = gzip.compress(content) if packed else content
    whole = read_text(tmp_path_factory.mktemp("amounts"), "jobs", content)
    assert [Decimal(row["total"]) for row in whole.rows] == amounts


def test_keys_may_differ_from_record_to_record(tmp_path: Path) -> None:
    """A key that only the last record has is a column, and a missing one is a blank cell."""
    first = {key: API_JOB[key] for key in ("UUID", "JobType", "CreatedDate", "JobSource")}
    late = {
        "Status": "Canceled",
        "CreatedDate": "2025-11-20 08:00:00",
        "UUID": "LATE",
        "JobTotalPrice": "9.10",
    }
    whole = read_text(tmp_path, "jobs", lines_of(first, late))
    assert [(row["job_id"], row["type"], row["status"], row["total"]) for row in whole.rows] == [
        ("AB12CD", "COD Service", None, None),
        ("LATE", None, "Canceled", "9.10"),
    ]


def test_lines_that_are_no_records_are_quarantined(tmp_path: Path) -> None:
    """A damaged line costs only itself: its number and its text are in the quarantine."""
    whole = read_text(
        tmp_path,
        "jobs",
        lines_of(
            API_JOB,
            '{"UUID": "BROKEN", ',
            "[1, 2]",
            "",
            '{"UUID": "TWICE", "UUID": "TWICE"}',
            '{"UUID": "NAN", "JobTotalPrice": NaN}',
            "[" * 100_000,
            changed(UUID="LAST", JobTotalPrice="many"),
        ),
    )
    assert [row["job_id"] for row in whole.rows] == ["AB12CD"]
    found = [(r.as_found.line_no, r.as_found.record["UUID"][:20], r.reasons[0].code) for r in whole.rejected]
    assert found == [
        (2, '{"UUID": "BROKEN", ', "not_a_json_object"),
        (3, "[1, 2]", "not_a_json_object"),
        (5, '{"UUID": "TWICE", "U', "repeated_key"),
        (6, '{"UUID": "NAN", "Job', "not_a_json_object"),
        (7, "[" * 20, "not_a_json_object"),
        (8, "LAST", "not_a_number"),
    ]


def test_no_record_is_taken_for_a_total_or_a_header(tmp_path: Path) -> None:
    """A service returns records only: a campaign called Total costs what it costs."""
    campaigns = [("Total", "10.00"), ("Search", "20.00"), ("Grand total", "30.00"), ("Campaign", "5.00")]
    records = [
        {"campaign.name": name, "campaign.id": f"{number}7", "metrics.cost_micros": f"{cost[:-3]}000000",
         "segments.date": "2025-10-01"}
        for number, (name, cost) in enumerate(campaigns)
    ]  # fmt: skip
    whole = read_text(tmp_path, "google_spend", lines_of(*records))
    assert [(row["campaign"], Decimal(row["amount"])) for row in whole.rows] == [
        (name, Decimal(cost)) for name, cost in campaigns
    ]
    assert whole.file.records.summary_lines == 0


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            json.dumps(API_JOB)[:-9],
            f'line 1: "{len(json.dumps(API_JOB)) - 9} bytes without an end": last line cut off; accepted: one JSON object per line, the last one complete,'
            " too; copy, export or pull the file again",
        ),
        (
            f"{json.dumps(API_JOB)}\n{json.dumps(API_JOB)[:100]}",
            'line 2: "100 bytes without an end": last line cut off; accepted: one JSON object per line, the last one complete,'
            " too; copy, export or pull the file again",
        ),
        (
            json.dumps(API_JOB, indent=1),
            "line 1: not json lines; accepted: one JSON object per line; export the file again as JSON Lines or CSV",
        ),
        (
            json.dumps([API_JOB]),
            '"[": json array; accepted: CSV text, JSON Lines, or an XLSX workbook; write one object per line (JSON Lines),'
            " without brackets",
        ),
        (
            lines_of(*({f"key {number}": 1} for number in range(2001))),
            'line 2001: "more than 2,000 different keys up to this line": too many keys; accepted: objects with the same keys, as'
            " the columns of a table; export the records with a key for each column, and data only in the values",
        ),
        (
            lines_of({"Status": "Done", "JobType": "COD Service", "JobSource": "Google", "UUID": "A"}),
            '"Status, JobType, JobSource, UUID": missing columns; accepted: created_at (Created, CreatedDate, Created At,'
            " created_at); export the file in English, with these columns",
        ),
        (
            lines_of({"Lead #": 7, "Assigned": "Tess"} | API_JOB, {"Estimates": 1, "LeadDateTime": 1, "Due Date": 1,
                     "Invoice #": 1, "Estimate #": 3, "Balance": 1}),
            "headers of another kind of file",
        ),
    ],
    ids=["cut off", "last line cut off", "indented", "array", "keys", "columns", "kind"],
)  # fmt: skip
def test_refused_files(content: str, why: str, tmp_path: Path) -> None:
    """What can't be read is refused as a whole: place, found, accepted, remedy."""
    assert why in why_refused(tmp_path, content)


def test_line_longer_than_a_record_may_be(tmp_path: Path) -> None:
    """Memory is bounded, whatever the file."""
    content = lines_of(API_JOB, changed(Comments="x" * (17 << 20)), API_JOB)
    assert why_refused(tmp_path, content).startswith(
        "line 2: record too long; accepted: at most 16,777,216 bytes"
    )


# -- gzip -----------------------------------------------------------------------------------------------------------

CSV = text(JOBS, [job(3504, "AB12CD"), job(3505, "AB12CE")])


def test_packed_csv_is_read_like_plain(tmp_path: Path) -> None:
    """By its content, not by its name; archives that were put together are one file."""
    plain = read_text(tmp_path, "jobs", CSV)
    half = len(CSV) // 2
    for packed in (
        gzip.compress(CSV.encode()),
        gzip.compress(CSV[:half].encode()) + gzip.compress(CSV[half:].encode()),
        gzip.compress(CSV.encode("utf-16")),
    ):
        whole = read_text(tmp_path, "jobs", packed)
        assert (whole.rows, whole.file.delimiter) == (plain.rows, ",")


@pytest.mark.parametrize("content", [CSV, lines_of(API_JOB)], ids=["CSV", "JSON Lines"])
def test_damaged_archives_are_refused(content: str, tmp_path: Path) -> None:
    """An archive that is cut off anywhere, or damaged in any byte that matters, is refused; nothing of it is loaded."""
    packed = gzip.compress(content.encode(), mtime=0)
    for end in range(3, len(packed)):
        why = why_refused(tmp_path, packed[:end])
        assert why.startswith("gzip archive cut off; accepted: a complete gzip archive; "), end
    for number in (10, 30, len(packed) - 6):
        broken = bytearray(packed)
        broken[number] ^= 0x55
        assert "gzip archive" in why_refused(tmp_path, bytes(broken)), number
    assert "damaged gzip archive" in why_refused(tmp_path, packed + b"garbage")


def test_archives_of_something_else(tmp_path: Path) -> None:
    """What is inside is judged as if it were the file: a web page, an archive, a workbook."""
    assert why_refused(tmp_path, gzip.compress(b"<html>login</html>")).startswith('"HTML or XML": web page')
    assert why_refused(tmp_path, gzip.compress(gzip.compress(CSV.encode()))).startswith("gzip archive; ")
    workbook = gzip.compress(workbook_bytes([JOBS, job(3504, "AB12CD")]))
    assert why_refused(tmp_path, workbook).startswith("workbook in a gzip archive; ")
    assert why_refused(tmp_path, gzip.compress(b"")).startswith("empty file")


def test_source_of_packed_json_lines_is_found_by_its_keys(tmp_path: Path) -> None:
    """Directly in the landing folder, the keys tell the source as headers do."""
    path = tmp_path / "export.bin"
    path.write_bytes(gzip.compress(lines_of(API_JOB).encode()))
    assert detect_source(local_file(path, tmp_path)).name == "jobs"


# -- loading --------------------------------------------------------------------------------------------------------


def test_the_same_records_as_csv_and_as_json_lines(landing: Landing) -> None:
    """The form of a file changes nothing: the second one brings nothing new, and the table is the same."""
    rows = [job(number, f"AB12C{number}", Total=f"{number}.10") for number in range(1, 8)]
    landing.write("jobs/1.csv", text(JOBS, rows), day=1)
    assert landing.load_one("jobs").counts.inserted == 7
    before = landing.table("raw.jobs")
    lines = lines_of(*(json.dumps(dict(zip(JOBS, row, strict=True))) for row in rows))
    landing.write("jobs/2.jsonl.gz", gzip.compress(lines.encode()), day=2)
    loaded = landing.load_one("jobs")
    assert (loaded.counts.records_read, loaded.counts.unchanged, loaded.warnings) == (7, 7, [])
    assert landing.table("raw.jobs") == before
    assert landing.rows("SELECT path, encoding, delimiter FROM raw.source_files ORDER BY path") == [
        ("jobs/1.csv", "utf-8", ","),
        ("jobs/2.jsonl.gz", "utf-8", None),
    ]


def test_quarantine_of_packed_lines_shows_what_was_found(landing: Landing) -> None:
    """Records that only a comparison refuses are read once more for their cells, from the archive, too."""
    twice: list[Any] = [
        changed(JobTotalPrice=1),
        changed(JobTotalPrice=2),
        changed(UUID="OK", SerialId=1),
        "{oops",
    ]
    landing.write("jobs/1.jsonl.gz", gzip.compress(lines_of(*twice).encode()), day=1)
    counts = landing.load_one("jobs").counts
    assert (counts.inserted, counts.quarantined) == (1, 3)
    found = landing.rows(
        "SELECT line_no, reasons -> 0 ->> 'code', record ->> 'JobTotalPrice', record ->> 'UUID' FROM raw.rejected_rows"
        " ORDER BY line_no"
    )
    assert found == [
        (1, "conflicting_records", "1", "AB12CD"),
        (2, "conflicting_records", "2", "AB12CD"),
        (4, "not_a_json_object", "", "{oops"),
    ]


def test_memory_does_not_grow_with_a_packed_file(tmp_path: Path) -> None:
    """A small archive of very many lines takes no more memory than a few blocks of them."""
    record = json.dumps({key: API_JOB[key] for key in ("UUID", "JobType", "JobSource", "CreatedDate")}) + "\n"

    def peak(records: int) -> int:
        path = tmp_path / f"{records}.jsonl.gz"
        path.write_bytes(gzip.compress((record * records).encode(), 1))
        tracemalloc.start()
        try:
            opened = open_file(path, SOURCES["jobs"], exported_at=EXPORTED_AT, timezone=NEW_YORK)
            for _ in opened.batches():
                pass
            assert opened.records.read == records
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(120_000) < 1.5 * peak(40_000)
