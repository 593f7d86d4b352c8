"""What kind of file it is, in which encoding, and its content as clean UTF-8 with plain line ends."""

from __future__ import annotations

import codecs
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crm_analytics.analytics.ingest.errors import RefusedFile

BLOCK = 2 << 20
DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class TextFormat:
    """How the bytes of a text file are read."""

    encoding: str
    warning: str | None = None


def is_workbook(path: Path) -> bool:
    """Whether the content (not the name) is an `.xlsx` workbook. Raises RefusedFile for what cannot be read at all."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise RefusedFile(
            f"{path.name}: cannot be read ({error.strerror}); check that it is a file and its rights"
        ) from error
    if not start.strip(b"\x00 \r\n\t\xef\xbb\xbf\xff\xfe") and path.stat().st_size <= len(start):
        raise RefusedFile(f"{path.name}: the file is empty; accepted: a CSV or XLSX export with a header row")
    if start.startswith(b"PK\x03\x04"):
        return True
    text = start.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    remedy = "accepted: CSV text or an XLSX workbook; export it again as CSV"
    if text.startswith(
        (b"<!doctype", b"<!--", b"<html", b"<table", b"<head", b"<?xml", b"<body", b"<script")
    ):
        raise RefusedFile(
            f"{path.name}: this is a web page (HTML or XML), probably a login or error page; {remedy}"
        )
    if start.startswith(b"\xd0\xcf\x11\xe0"):
        raise RefusedFile(
            f"{path.name}: this is an old or encrypted Excel file (.xls); {remedy}, or save it as .xlsx without a password"
        )
    if start.startswith((b"%PDF", b"\x1f\x8b", b"Rar!", b"7z\xbc\xaf", b"PAR1", b"\x89PNG", b"\xff\xd8\xff")):
        raise RefusedFile(
            f"{path.name}: this is not a table of text (its first bytes are {start[:4]!r}); {remedy}"
        )
    return False


def sniff_encoding(path: Path) -> TextFormat:
    """Strict UTF-8 first; NUL bytes mean UTF-16; cp1252 last, with a warning. Reads the whole file once.

    Raises RefusedFile where none of them can be the encoding.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    utf8 = True
    with path.open("rb") as file:
        start = file.read(BLOCK)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return _checked(path, "utf-16")
        block, position = start, 0
        undecodable = 0
        while block:
            if b"\x00" in block:
                even, odd = block[::2].count(0), block[1::2].count(0)
                if max(even, odd) > len(block) // 8 and position == 0:
                    return _checked(path, "utf-16-le" if odd > even else "utf-16-be")
                raise RefusedFile(
                    f"{path.name}: byte {position + block.index(0) + 1} is NUL, so this is not plain text; accepted: "
                    "UTF-8, UTF-16 or Windows-1252 (cp1252) text; export the file again as CSV (UTF-8)"
                )
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
        return TextFormat("utf-8")
    checked = _checked(path, "cp1252")
    return TextFormat(
        checked.encoding,
        f"not UTF-8 (byte {undecodable}): read as Windows-1252 (cp1252); check names with accents, "
        "or export the file again as CSV (UTF-8)",
    )


def _checked(path: Path, encoding: str) -> TextFormat:
    """The encoding, if the whole file decodes strictly in it. Raises RefusedFile."""
    try:
        with path.open("r", encoding=encoding, newline="") as file:
            while block := file.read(BLOCK):
                if "\x00" in block:
                    raise RefusedFile(
                        f"{path.name}: contains NUL characters; export the file again as CSV (UTF-8)"
                    )
    except UnicodeError as error:
        raise RefusedFile(
            f"{path.name}: the text is neither UTF-8 nor valid {encoding} ({error}); "
            "accepted: UTF-8, UTF-16 or Windows-1252 (cp1252); export the file again as CSV (UTF-8)"
        ) from error
    return TextFormat(encoding)


def utf8_blocks(path: Path, encoding: str) -> Iterator[bytes]:
    """The file's text as blocks of UTF-8: no BOM, every line end a single newline."""
    first = True
    held = b""
    with path.open("rb") as file:
        decoder = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("strict")
        while raw := file.read(BLOCK):
            block = raw if decoder is None else decoder.decode(raw).encode()
            if first and block:
                block, first = block.removeprefix(codecs.BOM_UTF8), False
            block = held + block
            held = b"\r" if block.endswith(b"\r") else b""  # its newline may begin the next block
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
    """Refuse a workbook whose parts would unpack to more than 512 MiB, or that is no sound archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise RefusedFile(
            f"{path.name}: the workbook is damaged ({error}); copy or export it again, or save it as CSV"
        ) from error
    if size > MAX_UNCOMPRESSED:
        raise RefusedFile(
            f"{path.name}: the workbook unpacks to {size:,} bytes; accepted: at most {MAX_UNCOMPRESSED:,}; save it as CSV"
        )
