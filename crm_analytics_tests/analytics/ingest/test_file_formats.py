"""File formats: workbooks are known by their content, and others are refused by name, with a remedy."""

from __future__ import annotations

import io
import zipfile
from datetime import date, datetime
from pathlib import Path

import pytest
from openpyxl import Workbook
from openpyxl.utils.datetime import CALENDAR_MAC_1904

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading.source_detection import detect_source
from crm_analytics_tests.analytics.ingest.landing_folder import Landing, local_file
from crm_analytics_tests.analytics.ingest.samples import SAMPLES, day, read, read_text, workbook_bytes

ROWS: list[list[object]] = [
    ["Payment ID", "Job #", "Amount", "Date"],
    ["P1", 1, 5.25, datetime(2024, 2, 29)],
    ["P2", 2, 6, datetime(2024, 11, 1, 10, 30)],
]
STRICT = {
    b"http://schemas.openxmlformats.org/spreadsheetml/2006/main": b"http://purl.oclc.org/ooxml/spreadsheetml/main",
    b"http://schemas.openxmlformats.org/officeDocument/2006/relationships": b"http://purl.oclc.org/ooxml/officeDocument/relationships",
}
SAVE = "; open it in a spreadsheet program and save it as Excel Workbook (*.xlsx) or CSV"
UNPACK = "; unpack it, and keep the file that was in it"
AGAIN = "; export it again as CSV"


def archive(**parts: bytes) -> bytes:
    """Returns a ZIP archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as written:
        for name, part in parts.items():
            written.writestr(name, part)
    return content.getvalue()


def strict(content: bytes) -> bytes:
    """Returns the workbook in the namespaces of Strict Open XML."""
    parts = {}
    with zipfile.ZipFile(io.BytesIO(content)) as workbook:
        for name in workbook.namelist():
            parts[name] = workbook.read(name)
            for before, after in STRICT.items():
                parts[name] = parts[name].replace(before, after)
    return archive(**parts)


def test_strict_open_xml_workbook(landing: Landing):
    """A Strict Open XML workbook is refused by name, not as an empty file, and its neighbor loads."""
    landing.write("payments/strict.xlsx", strict(workbook_bytes(ROWS)))
    landing.write("payments/saved again.xlsx", workbook_bytes(ROWS))
    results = {file.path: file for file in landing.load("payments").files}
    assert results["payments/strict.xlsx"].message == (
        "strict open xml workbook; accepted: CSV text, JSON Lines, or an XLSX workbook; save it as Excel Workbook (*.xlsx), not Strict"
        " Open XML, or as CSV"
    )
    assert results["payments/saved again.xlsx"].counts.inserted == 2


CONTENT_TYPES = {"[Content_Types].xml": b"<Types/>"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jobs.xlsx", strict(workbook_bytes([["Job #"], ["Job #", "UUID"]])), "strict open xml workbook"),
        ("jobs.csv", strict(workbook_bytes([["x"]], [["y"]])), "strict open xml workbook"),
        ("jobs.xlsb", archive(**CONTENT_TYPES, **{"xl/workbook.bin": b""}), f'".xlsb": binary excel workbook{SAVE}'),
        ("jobs.ods", archive(mimetype=b"application/vnd.oasis.opendocument.spreadsheet"), f'"application/vnd.oasis.opendocument.spreadsheet": opendocument file{SAVE}'),
        ("jobs.numbers", archive(**{"Index/Document.iwa": b""}), "numbers spreadsheet; export it from Numbers as CSV or Excel"),
        ("jobs.docx", archive(**CONTENT_TYPES, **{"word/document.xml": b""}), f"document or presentation{AGAIN}"),
        ("jobs.xlsx", archive(**{"jobs.csv": b"x"}), f"zip archive{UNPACK}"),
        ("jobs.xls", b"\xd0\xcf\x11\xe0" + b"x" * 600, "old or encrypted excel file; export it again as CSV, or save it as Excel Workbook (*.xlsx) without a password"),
        ("jobs.xls", b'<?xml version="1.0"?>\n<Workbook xmlns="urn:schemas-microsoft-com:office:spreadsheet">', f"xml spreadsheet 2003{SAVE}"),
        ("jobs.xls", b"<TABLE border=1><tr><td>Job #</td></tr></TABLE>", f"html table saved as a spreadsheet{SAVE}"),
        ("jobs.xls", b'<html xmlns:x="urn:schemas-microsoft-com:office:excel"><table>', f"html table saved as a spreadsheet{SAVE}"),
        ("jobs.csv", b"<!DOCTYPE html><html><body><form>Sign in</form>", '"HTML or XML": web page; this may be a login or error page; export it again as CSV'),
        ("jobs.csv", b"%PDF-1.7\n", f"pdf document{AGAIN}"),
        ("jobs.csv", b"\x1f\x8b\x08\x00", "gzip archive cut off; accepted: a complete gzip archive"),
        ("jobs.csv", b"Rar!\x1a\x07", f"rar archive{UNPACK}"),
        ("jobs.csv", b"PAR1....PAR1", f"parquet file{AGAIN}"),
        ("jobs.csv", b"\x89PNG\r\n", f"picture{AGAIN}"),
        ("jobs.xlsx", b"PK\x03\x04junk", "damaged workbook"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read(tmp_path: Path, name: str, content: bytes, message: str):
    """A file that is neither text nor a workbook is refused as what it is, with a remedy, whatever its name."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RefusedFile) as refusal:
        read(path, "jobs")
    assert str(refusal.value).replace("; accepted: CSV text, JSON Lines, or an XLSX workbook", "").startswith(f"{name}: {message}") or (
        message == "damaged workbook" and message in str(refusal.value)
    )  # fmt: skip
    path = path.rename(tmp_path / "export (3).bin")
    with pytest.raises(RefusedFile, match=message.split(";")[0].split(": ")[-1]):
        detect_source(local_file(path, tmp_path))


@pytest.mark.parametrize("name", ["payments.csv", "payments.xls", "payments.XLSM", "payments"])
def test_workbook_of_another_name(tmp_path: Path, name: str):
    """A workbook is read whatever its name, since people rename files instead of saving them in another format."""
    path = tmp_path / name
    path.write_bytes(workbook_bytes(ROWS))
    assert [row["amount"] for row in read(path, "payments").rows] == ["5.25", "6"]


def test_workbook_whose_dates_begin_in_1904(tmp_path: Path):
    """Dates of a workbook with the 1904 date system are four years and a day later than their numbers say."""
    workbook = Workbook()
    workbook.epoch = CALENDAR_MAC_1904
    assert workbook.active is not None
    for row in ROWS:
        workbook.active.append(row)
    path = tmp_path / "payments.xlsx"
    workbook.save(path)
    with zipfile.ZipFile(path) as saved:
        assert b'date1904="1"' in saved.read("xl/workbook.xml")
        # days from January 1, 1904 to February 29, 2024
        assert f"<v>{(date(2024, 2, 29) - date(1904, 1, 1)).days}</v>".encode() in saved.read(
            "xl/worksheets/sheet1.xml"
        )
    assert [row["paid_date"] for row in read(path, "payments").rows] == [day("2024-02-29"), day("2024-11-01")]


LOCALIZED = {
    "German": "Kampagne,Kampagnenstatus,Währungscode,Kosten,Tag",
    "Spanish": "Campaña,Estado de la campaña,Código de moneda,Coste,Día",
    "French": "Campagne,État de la campagne,Code de devise,Coût,Jour",
    "Italian": "Campagna,Stato campagna,Codice valuta,Costo,Giorno",
    "Portuguese": "Campanha,Status da campanha,Código da moeda,Custo,Dia",
    "Dutch": "Campagne,Campagnestatus,Valutacode,Kosten,Dag",
    "Polish": "Kampania,Stan kampanii,Kod waluty,Koszt,Dzień",
    "Russian": "Кампания,Статус кампании,Код валюты,Расход,День",
    "Japanese": "キャンペーン,キャンペーンの状態,通貨コード,費用,日",
}


@pytest.mark.parametrize("form", ["csv", "xlsx"])
@pytest.mark.parametrize("language", LOCALIZED)
def test_report_in_another_language(tmp_path: Path, language: str, form: str):
    """Headers in another language are not guessed: the message shows the header row and advises an English export."""
    header = LOCALIZED[language]
    rows = [
        ["Report 2025"],
        ["1. - 31. 8. 2025"],
        header.split(","),
        ["Öfen", "aktiv", "EUR", "2520.00", "2025-08-01"],
    ]
    content = workbook_bytes(rows) if form == "xlsx" else "\n".join(map(",".join, rows)).encode()
    shown = f'"{header.replace(",", " | ")}": '
    with pytest.raises(RefusedFile) as refusal:
        read_text(tmp_path, "google_spend", content)
    assert f"export.csv: {shown}no header row; accepted: Google Ads spend with a header in the first" in str(
        refusal.value
    )
    assert "amount: Amount, Cost, Spend" in str(refusal.value)
    assert "; export the file in English, with its header row, or move it" in str(refusal.value)
    with pytest.raises(RefusedFile) as refusal:
        detect_source(local_file(tmp_path / "export.csv", tmp_path))
    shown = (
        f"export.csv: {shown}neither name nor header tells the source; move it into the folder of its source"
    )
    assert str(refusal.value).startswith(shown)
    assert str(refusal.value).endswith(", or export the file in English")


def test_localized_report_with_one_english_header(tmp_path: Path):
    """A header that is partly understood shows all of it, too, and says what is missing."""
    with pytest.raises(RefusedFile) as refusal:
        read_text(
            tmp_path, "jobs", SAMPLES["jobs"].replace("Job Type", "Auftragsart").replace("Source", "Quelle")
        )
    assert ",".join(["Job #", " Client", " Tags", " Auftragsart"]) in str(refusal.value)
    assert "missing columns; accepted: type (Job Type, JobType, Type, type)" in str(refusal.value)
    assert str(refusal.value).endswith("; export the file in English, with these columns")
