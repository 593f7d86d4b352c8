"""Tells in which encoding a text file is, and reads it as UTF-8 with plain newlines."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

import numpy as np

from crm_analytics.analytics.ingest.errors import Reason, RefusedFile
from crm_analytics.analytics.ingest.storage.landing import Content

BLOCK = 4 << 20
DELIMITERS = ",;\t|"
ENCODINGS = "UTF-8, UTF-16 or Windows-1252 (cp1252) text"
EXPORT_AGAIN = "export the file again as CSV (UTF-8)"


def sniff_encoding(content: Content) -> tuple[str, list[str]]:
    """Returns the encoding and warnings: strict UTF-8 first, UTF-16 if there are NUL bytes, and cp1252 last.

    Reads the whole file once. Raises RefusedFile if none of them can be the encoding.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    utf8 = True
    with content.open("rb") as file:
        start = file.read(BLOCK)
        if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return _checked(content, "utf-16"), []
        block, position = start, 0
        undecodable = 0
        while block:
            if b"\x00" in block:
                even, odd = block[::2].count(0), block[1::2].count(0)
                if max(even, odd) > len(block) // 8 and position == 0:
                    return _checked(content, "utf-16-le" if odd > even else "utf-16-be"), []
                raise _nul(content, f"byte {position + block.index(0) + 1}")
            # ASCII is UTF-8, unless it breaks into a character that the block before began
            if utf8 and not (block.isascii() and not decoder.getstate()[0]):
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
    return _checked(content, "cp1252"), [
        f"not UTF-8 (byte {undecodable}), so it was read as Windows-1252 (cp1252); check names with accents, "
        f"or {EXPORT_AGAIN}"
    ]


def _checked(content: Content, encoding: str) -> str:
    """Returns the encoding if the whole file decodes strictly in it. Raises RefusedFile otherwise."""
    try:
        with (
            content.open("rb") as raw,
            io.TextIOWrapper(raw, encoding=encoding, newline="") as file,
        ):
            while block := file.read(BLOCK):
                if "\x00" in block:
                    raise _nul(content)
    except UnicodeError as error:
        found = f"neither UTF-8 nor valid {encoding} ({error})"
        reason = Reason("unknown_encoding", None, found, ENCODINGS, EXPORT_AGAIN)
        raise RefusedFile(content.name, reason) from error
    return encoding


def _nul(content: Content, place: str | None = None) -> RefusedFile:
    reason = Reason("nul_character_in_text", accepted=ENCODINGS, remedy=EXPORT_AGAIN)
    return RefusedFile(content.name, reason, place=place)


def utf8_blocks(content: Content, encoding: str, plain: int | None = None) -> Iterator[bytes]:
    """Yields the file's text as blocks of UTF-8, without BOM and with a plain newline at every line's end.

    After the first `plain` bytes, if that is given, carriage returns may stay before newlines: they take long to remove.
    """
    first = True
    yielded = 0
    held = b""
    with content.open("rb") as file:
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
            may_stay = plain is not None and yielded >= plain
            if b"\r" in block and not (may_stay and _only_before_newlines(block)):
                block = with_plain_newlines(block)
            if block:
                yield block
                yielded += len(block)
    if held:
        yield b"\n"


def with_plain_newlines(text: bytes) -> bytes:
    """Writes every carriage return, with or without a newline after it, as a newline."""
    if _only_before_newlines(text):
        # the usual file; half the time of replacing
        return text.translate(None, b"\r")
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _only_before_newlines(text: bytes) -> bool:
    """Returns whether every carriage return has a newline after it."""
    buffer = np.frombuffer(text, dtype=np.uint8)
    returns = np.flatnonzero(buffer == 13)
    return not text.endswith(b"\r") and bool(np.all(buffer[returns + 1] == 10))
