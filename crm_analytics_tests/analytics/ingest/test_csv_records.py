"""Splitting CSV text into records: both paths, the borders of pieces, misplaced quotes."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crm_analytics.analytics.ingest.errors import RefusedFile
from crm_analytics.analytics.ingest.reading import csv_records
from crm_analytics.analytics.ingest.reading.csv_records import QuoteNeverCloses, RecordTooLong, Splitter
from crm_analytics_tests.analytics.ingest.samples import read_text
from crm_analytics_tests.chance import examples

WIDTH = 3
Record = tuple[int, list[str], bool]  # first line, cells, whether it is a defect


def _split(text: str, piece: int, cuts: list[int], ending: bytes = b"\n") -> list[Record] | str:
    """Splits a text that arrives in blocks cut at some offsets; returns `unclosed …` if a quote never closes.

    Lines end as `ending` says.
    """
    content = text.encode()
    offsets = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    blocks = iter([content[start:end].replace(b"\n", ending) for start, end in pairwise(offsets)])
    found: list[Record] = []
    before, csv_records.PIECE = csv_records.PIECE, piece
    try:
        for block in Splitter(",", WIDTH, 1).split(blocks):
            lines = block.lines()
            assert len(lines) == block.length
            for row in range(block.length):
                cells = [column[row].as_py() for column in block.columns]
                found.append((int(lines[row]), cells, row in block.defects))
    except QuoteNeverCloses as error:
        return f"unclosed in record {error.record}, line {error.line}"
    finally:
        csv_records.PIECE = before
    return found


_texts = st.text(alphabet=st.sampled_from(list('aé,"\n\n,"')), max_size=60)
_cells = st.text(alphabet=st.sampled_from(list('aé,"\n ')), max_size=6)
_rows = st.lists(st.lists(_cells, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=12)
_cuts = st.lists(st.integers(0, 200), max_size=6)


@examples(150)
@given(
    rows=_rows,
    piece=st.integers(1, 120),
    cuts=_cuts,
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_clean_csv_is_split_as_it_was_written(
    rows: list[list[str]], piece: int, cuts: list[int], quoting: int
):
    """Clean CSV is split as it was written: one wrong cut would shift every cell after it."""
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


@examples(300)
@given(text=_texts, piece=st.integers(1, 80), cuts=_cuts, ending=st.sampled_from([b"\n", b"\r\n"]))
@example('1,"a\nb",c\n\n2,d,"e"\n', 1000, [], b"\r\n")
@example('1,"a\nb",c\n2,d\n', 1000, [], b"\r\n")
@example('1,"a\nb",c\n2,d,"e" f\n', 1000, [], b"\r\n")
def test_text_splits_the_same_wherever_it_is_cut(text: str, piece: int, cuts: list[int], ending: bytes):
    """Records depend neither on where blocks happen to end, nor on the path that splits them, nor on carriage returns."""
    assert _split(text, piece, cuts, ending) == _split(text, 10_000, [])


def test_stray_quote_keeps_the_neighbors():
    """A cell that opens with a stray quote does not swallow the records up to the next quote."""
    found = _split('1,"Ann,x\n2,"Bob",y\n3,Cid,z\n', 1000, [])
    assert found == [
        (1, ["1", "Ann,x\n", ""], True),
        (2, ["2", "Bob", "y"], False),
        (3, ["3", "Cid", "z"], False),
    ]


def test_quotes_inside_an_unquoted_cell_are_text():
    """A quote inside an unquoted cell is text: people write inches as in `36" fridge`."""
    assert _split('1,36" fridge,x\n2,"a,b",y\n', 1000, []) == [
        (1, ["1", '36" fridge', "x"], False),
        (2, ["2", "a,b", "y"], False),
    ]


@pytest.mark.parametrize("ending", ["", "\n", "\n2,b,c\n3,d,e\n"])
def test_quote_that_never_closes_is_named(ending: str):
    """An unclosed quote is refused: otherwise everything after it would be one record's last cell."""
    assert _split(f'1,a,b\n\n2,"c{ending}', 5, []) == "unclosed in record 2, line 3"


def test_unclosed_quote_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch):
    """Reading stops at the longest record: an unclosed quote must not read a whole large file into memory."""
    monkeypatch.setattr(csv_records, "MAX_RECORD", 1000)
    monkeypatch.setattr(csv_records, "PIECE", 100)
    consumed = []

    def blocks():
        yield b'1,a,b\n2,"c,d\n'
        for number in range(10_000):
            consumed.append(number)
            yield b"3,e,f\n" * 10

    with pytest.raises(QuoteNeverCloses) as refusal:
        list(Splitter(",", WIDTH, 1).split(blocks()))
    assert refusal.value.record == 2
    assert len(consumed) < 100


@pytest.mark.parametrize("before", ["", '2,"x",y\n', '2,a "b" c,y\n', '2,"a,b\nc,d\n'])
@pytest.mark.parametrize("ending", ["", ",c\n4,b,c\n"])
def test_long_cell_is_not_an_open_quote(before: str, ending: str, monkeypatch: pytest.MonkeyPatch):
    """A cell that is too long is not reported as an open quote, which a person would look for in vain."""
    monkeypatch.setattr(csv_records, "MAX_RECORD", 1000)
    monkeypatch.setattr(csv_records, "PIECE", 100)
    content = f"1,a,b\n{before}3,{'x' * 5000}{ending}".encode()
    blocks = (content[start : start + 50] for start in range(0, len(content), 50))
    open_quote = before.count('"') % 2
    with pytest.raises(QuoteNeverCloses if open_quote else RecordTooLong) as refusal:
        list(Splitter(",", WIDTH, 1).split(blocks))
    assert refusal.value.record == (2 if open_quote or not before else 3)


def test_long_cell_is_refused_for_its_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cell that is too long is refused for its length, since the message is all that a person has."""
    monkeypatch.setattr(csv_records, "MAX_RECORD", 1000)
    monkeypatch.setattr(csv_records, "PIECE", 100)
    message = r"line 3, record 2: record too long; accepted: at most 16,777,216 bytes; shorten the cell"
    with pytest.raises(RefusedFile, match=message):
        read_text(tmp_path, "targets", 'month,target_repairs,note\n2025-10,1,a "b"\n2025-11,2,' + "x" * 2000)
