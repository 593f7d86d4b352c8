"""Damages the content of a file at random, as copying, editing, truncation, spreadsheets and bad tools do."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable
from datetime import datetime, time, timedelta
from random import Random

from crm_analytics_tests.analytics.ingest.samples import SAMPLES, workbook_bytes

TOKENS = (
    b'"', b'""', b",", b";", b"\t", b"|", b"\n", b"\r", b"\r\n", b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xa0", b"\xc2\xa0",
    b"=1+1", b"-", b"(", b"$", b"NaN", b"1e999", b"99999999999999999999", b"Total", b"Total: x", b"\xe2\x88\x92",
    b"2024-02-30", b"Wed Dec 17th, 03:21PM", b"0000-00-00", b"9999-12-31 23:59:59 +0000", b"<html>", b"null", b"\x1a",
)  # fmt: skip


def _cut(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _behead(content: bytes, rng: Random) -> bytes:
    return content[rng.randrange(len(content)) :]


def _flip(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _insert(content: bytes, rng: Random) -> bytes:
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(content) + 1)
        content = content[:place] + rng.choice(TOKENS) + content[place:]
    return content


def _delete(content: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.randint(1, 40) :]


def _duplicate(content: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(content))
    end = start + rng.randint(1, 400)
    return content[:end] + content[start:]


def _swap_lines(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines)


def _replace_everywhere(content: bytes, rng: Random) -> bytes:
    return content.replace(rng.choice((b",", b'"', b"\n", b"\r\n", b" ", b"0", b"-")), rng.choice(TOKENS))


def _encode(content: bytes, rng: Random) -> bytes:
    text = content.decode("latin-1") + "é"
    return text.encode(
        rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "cp1252", "utf-7")), "replace"
    )


def _noise(content: bytes, rng: Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randint(1, 60)) + content[place:]


def _cut_utf16(content: bytes, rng: Random) -> bytes:
    encoded = content.decode("latin-1").encode(rng.choice(("utf-16", "utf-16-le", "utf-16-be")))
    return encoded[: rng.randrange(1, len(encoded)) | 1]


def _concatenate(content: bytes, rng: Random) -> bytes:
    """Appends an export, of the same source or another, with or without a line break between them."""
    other = rng.choice(list(SAMPLES.values())).encode()
    return content + rng.choice((b"", b"\n", b"\r\n\r\n")) + rng.choice((content, other))


def _stack_headers(content: bytes, rng: Random) -> bytes:
    """Repeats the header further down, as it is or with its columns in another order."""
    lines = content.split(b"\n")
    header = lines[0]
    if rng.random() < 0.7:
        cells = header.rstrip(b"\r").split(b",")
        rng.shuffle(cells)
        header = b",".join(cells) + b"\r"
    place = rng.randrange(len(lines) + 1)
    title = [b"Report 2\r"] if rng.random() < 0.3 else []
    return b"\n".join([*lines[:place], *title, header, *lines[place:]])


def _shift_columns(content: bytes, rng: Random) -> bytes:
    """Adds or removes a cell at one place of all lines from some line on."""
    lines = content.split(b"\n")
    first, place, add = rng.randrange(len(lines)), rng.randrange(6), rng.random() < 0.5
    for number in range(first, len(lines)):
        cells = lines[number].split(b",")
        cells[place : place + (not add)] = [b""] * add
        lines[number] = b",".join(cells)
    return b"\n".join(lines)


KINDS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _cut, _behead, _flip, _insert, _insert, _delete, _duplicate, _swap_lines, _replace_everywhere, _encode, _noise,
    _cut_utf16, _concatenate, _stack_headers, _shift_columns,
)  # fmt: skip


def damage(content: bytes, rng: Random) -> bytes:
    """Damages the content one to three times."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(KINDS)(content, rng) or b" "
    return content


def damaged_export(source: str, rng: Random, times: int) -> bytes:
    """Returns a CSV export of the source, its records repeated so many times, and damaged."""
    header, _, records = SAMPLES[source].encode().partition(b"\r\n")
    return damage(header + b"\r\n" + records * times, rng)


def damaged_workbook(source: str, rng: Random) -> bytes:
    """Returns a workbook with the source's sample, damaged as a file, in one of its parts, or in its cells' types."""
    rows = [[_cell(cell) for cell in line.split(",")] for line in SAMPLES[source].splitlines()]
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 6)):
            row = rng.choice(rows)
            row[rng.randrange(len(row))] = rng.choice(CELLS)
        return workbook_bytes(rows)
    return rng.choice((damage, _damage_inside, _damage_inside))(workbook_bytes(rows), rng)


CELLS = (
    None, True, False, 0, -1, 1e308, 45_000, 45_000.5, 0.5, datetime(1900, 1, 1), datetime(9999, 12, 31, 23, 59, 59),
    time(3, 25), timedelta(hours=27, minutes=3), "#N/A", "=1/0", "=SUM(A1:A9)", "  ", "2025-12-19", "12/19/2025 3:05 PM",
)  # fmt: skip


def _cell(text: str) -> object:
    """Makes some of the cells numbers and dates, as in real workbooks."""
    try:
        return float(text)
    except ValueError:
        return datetime(2025, 12, 19, 10, 30) if text.startswith("2025-12-19") else text


def _damage_inside(content: bytes, rng: Random) -> bytes:
    """Damages one part of the archive, and packs a sound archive again."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        chosen = rng.choice([name for name in old.namelist() if "theme" not in name])
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, _damage_xml(part, rng) if name == chosen else part)
    return result.getvalue()


def _damage_xml(part: bytes, rng: Random) -> bytes:
    """Damages a part; half of the time the XML stays well formed, with other values in attributes and cells."""
    if rng.random() < 0.5:
        return damage(part, rng)
    values = list(re.finditer(rb'(?<=")[^"<>]*(?=")|(?<=>)[^<>]+(?=<)', part))
    for match in reversed(rng.sample(values, min(3, len(values)))):
        part = part[: match.start()] + rng.choice(VALUES) + part[match.end() :]
    return part


VALUES = (
    b"", b"0", b"-1", b"1e308", b"99999999999", b"XFD1048576", b"ZZZ1", b"A99999999", b"n", b"d", b"s", b"e", b"b",
    b"_x0000_", b"_xD800_", b"NaN", b"2025-13-45T00:00:00", b"hidden",
)  # fmt: skip
