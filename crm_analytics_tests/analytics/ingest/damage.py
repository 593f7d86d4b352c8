"""Damages the content of a file at random, as copying, editing, truncation and bad tools do."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

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


KINDS: tuple[Callable[[bytes, Random], bytes], ...] = (
    _cut, _behead, _flip, _insert, _insert, _delete, _duplicate, _swap_lines, _replace_everywhere, _encode, _noise,
)  # fmt: skip


def damage(content: bytes, rng: Random) -> bytes:
    """Damages the content one to three times."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = rng.choice(KINDS)(content, rng) or b" "
    return content
