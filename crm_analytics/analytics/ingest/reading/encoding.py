"""Tells what kind of file it is and in which encoding, and reads its text as UTF-8 with plain newlines."""

from __future__ import annotations

import codecs
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile, cannot_be_read

BLOCK = 2 << 20
DELIMITERS = ",;\t|"
ENCODINGS = "UTF-8, UTF-16 or Windows-1252 (cp1252) text"
EXPORT_AGAIN = "export the file again as CSV (UTF-8)"


def is_workbook(path: Path) -> bool:
    """Returns whether the content (not the name) is an `.xlsx` workbook. Raises RefusedFile for other formats."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise RefusedFile(path.name, cannot_be_read(error)) from error
    if not start.strip(b"\x00 \r\n\t\xef\xbb\xbf\xff\xfe") and path.stat().st_size <= len(start):
        raise RefusedFile(path.name, Reason("empty_file", accepted="a CSV or XLSX export with a header row"))
    if start.startswith(b"PK\x03\x04"):
        return True
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if text.startswith(
        (b"<!doctype", b"<!--", b"<html", b"<table", b"<head", b"<?xml", b"<body", b"<script")
    ):
        reason = Reason(
            "web_page",
            found="HTML or XML",
            remedy="this may be a login or error page; export it again as CSV",
        )
    elif start.startswith(b"\xd0\xcf\x11\xe0"):
        reason = Reason(
            "old_or_encrypted_excel_file",
            remedy="export it again as CSV, or save it as .xlsx without a password",
        )
    elif start.startswith(
        (b"%PDF", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf", b"PAR1", b"\x89PNG", b"\xff\xd8\xff")
    ):
        reason = Reason("not_a_table", found=f"first bytes {start[:4]!r}", remedy="export it again as CSV")
    else:
        return False
    raise RefusedFile(path.name, replace(reason, accepted="CSV text or an XLSX workbook"))


def sniff_encoding(path: Path) -> tuple[str, list[str]]:
    """Returns the encoding and warnings: strict UTF-8 first, UTF-16 if there are NUL bytes, and cp1252 last.

    Reads the whole file once. Raises RefusedFile if none of them can be the encoding.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    utf8 = True
    with path.open("rb") as file:
        start = file.read(BLOCK)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return _checked(path, "utf-16"), []
        block, position = start, 0
        undecodable = 0
        while block:
            if b"\x00" in block:
                even, odd = block[::2].count(0), block[1::2].count(0)
                if max(even, odd) > len(block) // 8 and position == 0:
                    return _checked(path, "utf-16-le" if odd > even else "utf-16-be"), []
                raise _nul(path, f"byte {position + block.index(0) + 1}")
            if utf8:
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    utf8, undecodable = False, position + error.start + 1
            position += len(block)
            block = file.read(BLOCK)
        if utf8:
            try:
                decoder.decode(b"", final=True)
            except UnicodeDecodeError:
                utf8, undecodable = False, position
    if utf8:
        return "utf-8", []
    return _checked(path, "cp1252"), [
        f"not UTF-8 (byte {undecodable}), so it was read as Windows-1252 (cp1252); check names with accents, "
        f"or {EXPORT_AGAIN}"
    ]


def _checked(path: Path, encoding: str) -> str:
    """Returns the encoding if the whole file decodes strictly in it. Raises RefusedFile otherwise."""
    try:
        with path.open("r", encoding=encoding, newline="") as file:
            while block := file.read(BLOCK):
                if "\x00" in block:
                    raise _nul(path)
    except UnicodeError as error:
        found = f"neither UTF-8 nor valid {encoding} ({error})"
        reason = Reason("unknown_encoding", None, found, ENCODINGS, EXPORT_AGAIN)
        raise RefusedFile(path.name, reason) from error
    return encoding


def _nul(path: Path, place: str | None = None) -> RefusedFile:
    reason = Reason("nul_character_in_text", accepted=ENCODINGS, remedy=EXPORT_AGAIN)
    return RefusedFile(path.name, reason, place=place)


def utf8_blocks(path: Path, encoding: str) -> Iterator[bytes]:
    """Yields the file's text as blocks of UTF-8, without BOM and with a plain newline at every line's end."""
    first = True
    held = b""
    with path.open("rb") as file:
        decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("strict")
        while raw := file.read(BLOCK):
            block = raw if decoder is None else decoder.decode(raw).encode()
            if first and block:
                block, first = block.removeprefix(codecs.BOM_UTF8), False
            block = held + block
            # The newline of a final carriage return may begin the next block.
            held = b"\r" if block.endswith(b"\r") else b""
            if held:
                block = block[:-1]
            if b"\r" in block:
                block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if block:
                yield block
    if held:
        yield b"\n"


MAX_UNCOMPRESSED = 512 << 20


def check_workbook_size(path: Path) -> None:
    """Raises RefusedFile for a workbook that would unpack to more than 512 MiB, and for a damaged archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise damaged_workbook(path, error) from error
    if size > MAX_UNCOMPRESSED:
        reason = Reason(
            "workbook_too_large",
            None,
            f"{size:,} bytes unpacked",
            f"at most {MAX_UNCOMPRESSED:,} bytes",
            "save it as CSV",
        )
        raise RefusedFile(path.name, reason)


def damaged_workbook(path: Path, error: Exception) -> RefusedFile:
    """Returns the refusal of a workbook that the libraries cannot read."""
    found = f"{type(error).__name__}: {str(error)[:200]}"
    remedy = "copy or export it again, or save it as CSV"
    return RefusedFile(path.name, Reason("damaged_workbook", found=found, remedy=remedy))
