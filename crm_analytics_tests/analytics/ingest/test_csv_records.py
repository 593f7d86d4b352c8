"""Splitting CSV text into records: both paths, the pieces' borders, quotes that do not fit."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading import csv_records as splitting
from crm_analytics.analytics.ingest.reading.csv_records import QuoteNeverCloses, RecordTooLong, split
from crm_analytics_tests.analytics.ingest.samples import read_text

WIDTH = 3
Record = tuple[int, list[str], bool]  # first line, cells, whether it is a defect


def _split(text: str, piece: int, cuts: list[int]) -> list[Record] | str:
    """The records of a text that arrives in blocks cut at some offsets; `unclosed` where a quote never closes."""
    content = text.encode()
    offsets = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    blocks = iter([content[start:end] for start, end in pairwise(offsets)])
    found: list[Record] = []
    before, splitting.PIECE = splitting.PIECE, piece
    try:
        for block in split(blocks, ",", WIDTH, 1):
            lines = block.lines()
            assert len(lines) == block.length
            for row in range(block.length):
                cells = [column[row].as_py() for column in block.columns]
                found.append((int(lines[row]), cells, row in block.defects))
    except QuoteNeverCloses as error:
        return f"unclosed in record {error.record}, line {error.line}"
    finally:
        splitting.PIECE = before
    return found


_texts = st.text(alphabet=st.sampled_from(list('aé,"\n\n,"')), max_size=60)
_cells = st.text(alphabet=st.sampled_from(list('aé,"\n ')), max_size=6)
_rows = st.lists(st.lists(_cells, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=12)
_cuts = st.lists(st.integers(0, 200), max_size=6)


@settings(max_examples=150, deadline=None)
@given(
    rows=_rows,
    piece=st.integers(1, 120),
    cuts=_cuts,
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_sound_csv_is_split_as_it_was_written(
    rows: list[list[str]], piece: int, cuts: list[int], quoting: int
):
    """The fast path cuts pieces at newlines outside quotes: one wrong cut would shift every cell behind it."""
    text = io.StringIO()
    csv.writer(text, quoting=quoting, lineterminator="\n").writerows(rows)  # type: ignore[arg-type]
    found = _split(text.getvalue(), piece, cuts)
    assert not isinstance(found, str)
    assert [cells for _, cells, _ in found] == rows
    assert not any(defect for _, _, defect in found)
    line = 1
    for (first_line, _cells, _), row in zip(found, rows, strict=True):
        assert first_line == line
        line += 1 + sum(cell.count("\n") for cell in row)


@settings(max_examples=300, deadline=None)
@given(text=_texts, piece=st.integers(1, 80), cuts=_cuts)
def test_any_text_splits_alike_wherever_it_is_cut(text: str, piece: int, cuts: list[int]):
    """What a record is must not depend on where blocks happen to end, nor on which path splits it."""
    assert _split(text, piece, cuts) == _split(text, 10_000, [])


def test_stray_quote_keeps_the_neighbors():
    """A cell that opens with a stray quote must not swallow the records up to the next quote."""
    found = _split('1,"Ann,x\n2,"Bob",y\n3,Cid,z\n', 1000, [])
    assert found == [
        (1, ["1", "Ann,x\n", ""], True),
        (2, ["2", "Bob", "y"], False),
        (3, ["3", "Cid", "z"], False),
    ]


def test_quotes_inside_an_unquoted_cell_are_text():
    """Inches are written with quotes: `36" fridge` is a cell like any other."""
    assert _split('1,36" fridge,x\n2,"a,b",y\n', 1000, []) == [
        (1, ["1", '36" fridge', "x"], False),
        (2, ["2", "a,b", "y"], False),
    ]


@pytest.mark.parametrize("ending", ["", "\n", "\n2,b,c\n3,d,e\n"])
def test_quote_that_never_closes_is_named(ending: str):
    """Without the refusal, everything behind the quote would be one record's last cell."""
    assert _split(f'1,a,b\n\n2,"c{ending}', 5, []) == "unclosed in record 2, line 3"


def test_record_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    """An unclosed quote at the start of a large file would otherwise read the whole file into memory."""
    monkeypatch.setattr(splitting, "MAX_RECORD", 1000)
    monkeypatch.setattr(splitting, "PIECE", 100)
    consumed = []

    def blocks():
        yield b'1,a,b\n2,"c,d\n'
        for number in range(10_000):
            consumed.append(number)
            yield b"3,e,f\n" * 10

    with pytest.raises(QuoteNeverCloses) as refusal:
        list(split(blocks(), ",", WIDTH, 1))
    assert refusal.value.record == 2
    assert len(consumed) < 100


@pytest.mark.parametrize("before", ["", '2,"x",y\n', '2,a "b" c,y\n', '2,"a,b\nc,d\n'])
@pytest.mark.parametrize("ending", ["", ",c\n4,b,c\n"])
def test_cell_without_end_is_no_open_quote(before: str, ending: str, monkeypatch: pytest.MonkeyPatch):
    """Somebody would look for a quote that is not there; where one is open, it is what to look for."""
    monkeypatch.setattr(splitting, "MAX_RECORD", 1000)
    monkeypatch.setattr(splitting, "PIECE", 100)
    content = f"1,a,b\n{before}3,{'x' * 5000}{ending}".encode()
    blocks = (content[start : start + 50] for start in range(0, len(content), 50))
    open_quote = before.count('"') % 2
    with pytest.raises(QuoteNeverCloses if open_quote else RecordTooLong) as refusal:
        list(split(blocks, ",", WIDTH, 1))
    assert refusal.value.record == (2 if open_quote or not before else 3)


def test_long_cell_is_refused_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The message is all that a person has."""
    monkeypatch.setattr(splitting, "MAX_RECORD", 1000)
    monkeypatch.setattr(splitting, "PIECE", 100)
    with pytest.raises(RefusedFile, match=r"line 3: record 2 is longer than 1,000 bytes; accepted: "):
        read_text(tmp_path, "targets", 'month,target_repairs,note\n2025-10,1,a "b"\n2025-11,2,' + "x" * 2000)
