"""Tells workbooks from text by their content, and refuses other formats, each by its name."""

from __future__ import annotations

import re
import zipfile
from dataclasses import replace

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, cannot_be_read
from crm_analytics.analytics.ingest.reading.unpacking import Unpacked
from crm_analytics.analytics.ingest.storage.landing import Content

_ACCEPTED = "CSV text, JSON Lines, or an XLSX workbook"
_SAVE = "open it in a spreadsheet program and save it as Excel Workbook (*.xlsx) or CSV"
_EXPORT = "export it again as CSV"
_UNPACK = "unpack it, and keep the file that was in it"

_WEB_PAGE = Reason(
    "web_page", found="HTML or XML", remedy="this may be a login or error page; export it again as CSV"
)
#: First bytes of formats that are neither text nor workbooks.
_BY_START = {
    b"\xd0\xcf\x11\xe0": Reason(
        "old_or_encrypted_excel_file",
        remedy="export it again as CSV, or save it as Excel Workbook (*.xlsx) without a password",
    ),
    b"%PDF": Reason("pdf_document", remedy=_EXPORT),
    b"{\\rtf": Reason("rtf_document", remedy=_EXPORT),
    b"\x1f\x8b": Reason("gzip_archive", remedy=_UNPACK),
    b"BZh": Reason("bzip2_archive", remedy=_UNPACK),
    b"\xfd7zXZ\x00": Reason("xz_archive", remedy=_UNPACK),
    b"7z\xbc\xaf": Reason("7z_archive", remedy=_UNPACK),
    b"Rar!": Reason("rar_archive", remedy=_UNPACK),
    b"PAR1": Reason("parquet_file", remedy=_EXPORT),
    b"SQLite format 3": Reason("sqlite_database", remedy=_EXPORT),
    b"\x89PNG": Reason("picture", remedy=_EXPORT),
    b"\xff\xd8\xff": Reason("picture", remedy=_EXPORT),
    b"GIF8": Reason("picture", remedy=_EXPORT),
}
_MARKUP = (
    b"<!doctype",
    b"<!--",
    b"<html",
    b"<table",
    b"<head",
    b"<?xml",
    b"<body",
    b"<script",
    b"mime-version:",
)

_JSON_ARRAY = re.compile(rb"\[\s*[{\]]")


def is_workbook(content: Content) -> bool:
    """Returns whether the content is an `.xlsx` workbook, and otherwise text. Raises RefusedFile for other formats."""
    try:
        with content.open("rb") as file:
            start = file.read(4096)
            is_all = not file.read(1)
    except OSError as error:
        raise RefusedFile(content.name, cannot_be_read(error)) from error
    if not start.strip(b"\x00 \r\n\t\xef\xbb\xbf\xff\xfe") and is_all:
        raise RefusedFile(
            content.name,
            Reason("empty_file", accepted="a CSV or XLSX export with a header row, or JSON Lines"),
        )
    archive = start.startswith(b"PK\x03\x04")
    reason = _other_archive(content) if archive else _other_format(start)
    if reason:
        raise RefusedFile(content.name, replace(reason, accepted=_ACCEPTED))
    if archive and isinstance(content, Unpacked):
        raise RefusedFile(content.name, Reason("workbook_in_a_gzip_archive", None, None, _ACCEPTED, _UNPACK))
    return archive


def _other_format(start: bytes) -> Reason | None:
    for first, reason in _BY_START.items():
        if start.startswith(first):
            return reason
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if _JSON_ARRAY.match(text):
        return Reason(
            "json_array", found="[", remedy="write one object per line (JSON Lines), without brackets"
        )
    if not text.startswith(_MARKUP):
        return None
    if b"urn:schemas-microsoft-com:office:spreadsheet" in text:
        return Reason("xml_spreadsheet_2003", remedy=_SAVE)
    if text.startswith(b"<table") or b"urn:schemas-microsoft-com:office:excel" in text:
        return Reason("html_table_saved_as_a_spreadsheet", remedy=_SAVE)
    return _WEB_PAGE


def _other_archive(content: Content) -> Reason | None:
    """Returns which ZIP archive it is, or None for a workbook; one that is damaged is left to the workbook's reader."""
    try:
        with content.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            kind, relations = (
                _beginning(archive, name) if name in names else b"" for name in ("mimetype", "_rels/.rels")
            )
    except Exception:
        return None
    if kind.startswith(b"application/vnd.oasis.opendocument"):
        return Reason("opendocument_file", found=kind.decode(errors="replace"), remedy=_SAVE)
    if "Index.zip" in names or any(name.endswith(".iwa") for name in names):
        return Reason("numbers_spreadsheet", remedy="export it from Numbers as CSV or Excel")
    if "[Content_Types].xml" not in names:
        return Reason("zip_archive", remedy=_UNPACK)
    if "xl/workbook.bin" in names:
        return Reason("binary_excel_workbook", found=".xlsb", remedy=_SAVE)
    if b"http://purl.oclc.org/ooxml/" in relations:
        remedy = "save it as Excel Workbook (*.xlsx), not Strict Open XML, or as CSV"
        return Reason("strict_open_xml_workbook", remedy=remedy)
    if any(name.startswith(("word/", "ppt/")) for name in names):
        return Reason("document_or_presentation", remedy=_EXPORT)
    return None


def _beginning(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as part:
        return part.read(4096)


MAX_UNCOMPRESSED = 512 << 20


def check_workbook_size(content: Content) -> None:
    """Raises RefusedFile for a workbook that would unpack to more than 512 MiB, and for a damaged archive."""
    try:
        with content.open("rb") as file, zipfile.ZipFile(file) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise damaged_workbook(content, error) from error
    if size > MAX_UNCOMPRESSED:
        reason = Reason(
            "workbook_too_large",
            None,
            f"{size:,} bytes unpacked",
            f"at most {MAX_UNCOMPRESSED:,} bytes",
            "save it as CSV",
        )
        raise RefusedFile(content.name, reason)


def damaged_workbook(content: Content, error: Exception) -> RefusedFile:
    """Returns the refusal of a workbook that the libraries cannot read."""
    found = f"{type(error).__name__}: {str(error)[:200]}"
    remedy = "copy or export it again, or save it as CSV"
    return RefusedFile(content.name, Reason("damaged_workbook", found=found, remedy=remedy))
