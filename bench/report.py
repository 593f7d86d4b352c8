"""The results as a table on the terminal and as docs/benchmarks.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.cost import Cost
from bench.table import BenchRow


@dataclass(frozen=True)
class Run:
    """All lines of a run, its scale, and what it took: seconds, and bytes of disk space at most."""

    rows: list[BenchRow]
    scale: float
    seconds: float
    disk: int


INTRODUCTION = """# Benchmarks

`make bench` writes this page after a full run on a machine with 2 cores. Every line compares two measurements of this
run, so its ratio holds on other machines, too. A line without a limit is for information.

**How to read a line.** Both sides are measured by turns (ours, theirs, ours, theirs), twice; what takes milliseconds,
ten times, and one changed month thirty times. The time is the best round's, because other work on the machine only ever
adds to it. *CPU* is the CPU time of the database server + that of the client's processes, the mean of all rounds, in
the same unit. The ratio is that of the times, with that of the CPU beside it: where other work disturbs a run, the CPU
is the steadier of the two.

The server is the embedded PostgreSQL with the settings of `make demo`, which keep it durable. `CHECKPOINT` before each
measurement keeps one side from paying for what the other wrote.
"""

#: What each section's baselines are, and what ours does beyond them.
EXPLANATIONS = {
    "ingest": """Ours starts from the vendors' CSV files: it recognizes, reads and types them, drops repeats, quarantines
what can't be right, links payments to jobs, notes the stale months, and keeps the ledger. Each load is a process of its
own, measured without its startup. The baselines are given the rows as they are in the end, typed and linked, and only
have to store them:

- **bare COPY**: one `COPY` for each table into twins of the raw tables with the same columns, defaults, checks, indexes
  and foreign key, but without triggers. *Into full twins*: they hold the first load's rows already.
- **heap COPY, then indexes**: one transaction that fills twins without indexes and then makes the same indexes and the
  foreign key, by the definitions in our catalog, and statistics. It is the fastest way that we know to store these
  rows, and our load contains it.
- **reload**: the same files again, after `TRUNCATE` and `ANALYZE` told the planner that the tables are empty. Plans made
  for empty tables once made it endless. It is cut off at three times the first load.
- **SHA-256 alone**: reading and hashing the files. Ours also compares them with the ledger, and notes their new times.""",
    "growth": """What a load costs for each row when there are more rows, and whether its memory stays the same. The
biggest load is measured once.""",
    "small files": """Files as they come day after day, each with a day's hundred records, into tables that are empty at
first. Ours does for each of them all that it does for a big one; a thread reads the next file meanwhile. The baseline
copies the typed rows of one file into a twin and commits, on an open connection. The sensor's tick asks for the news in a
folder whose files are all loaded, of a ledger that has not changed since the tick before; the baseline lists the folder
and reads each file's size and time.""",
    "metrics": """Daily and monthly metrics of the big exports and ten years of spend. The baseline is the fastest of
several ways in which a person would write the SQL by hand (`bench/hand_sql.py`): they know that no channel rule changed
over time, keep no queue of stale months, take no locks and write no log. All of them must give exactly our rows. *One
changed month*: one payment changed; each way computes the month and writes what changed, on a connection of its own.""",
    "comparators": """The same daily numbers from the same CSV files with other tools: their jobs, repairs and revenue must
equal ours. Ours is the first load and the metrics above, each measured in its own section.""",
    "commands": """Whole processes from start to end, with all that they import. The empty run has the assets, checks and
months of the real one; its steps do nothing, and it keeps the same Dagster storage.""",
    "dagster": """`crm-analytics refresh` over ten years of sample exports, from the outside, less the same loads,
computations and queries of checks, called directly. It is measured four times, because it is a difference. The baseline is
a run with the same assets, checks and months that reports the same metadata and does nothing: what is left is what Dagster
itself costs for a graph of this size.""",
    "CRM RPCs": """A payment by the RPC, beside the same call at the commit before versions, reversals, erasure, the
feed and the audit's origin came (all are on in ours), neither waiting for the disk; then beside an INSERT of the same row
into a table of the same shape, both durable: what ours adds is rules, guards, events and audit. Then the audit log is
sealed while clients pay and a transaction stays open, and last, references repeat and what is booked is counted.""",
    "Grafana panels": """Every dashboard query as `grafana_reader`, for twelve months out of ten years of daily data with 20
sources: the fastest of seven runs after a first one.""",
}

BEHIND = """
## Where we are behind, and why

- **DuckDB and pandas** get from the CSV files to the daily numbers many times faster. They read only the columns
  that the numbers need, keep nothing, and trust every cell. Ours stores every row durably with its indexes, knows which
  file each came from, quarantines what is wrong, and takes the next export as a difference. Who needs the numbers of two
  clean files once should use DuckDB.
- **Heap COPY, then indexes** is faster than our first load by what reading, typing, linking and the ledger cost. It is
  given the result of all that.
- **COPY into full twins** is faster than our second load for the same reason, and because ours compares each record with
  the table first; it makes the indexes again, which the COPY maintains row by row.
- **One COPY for a small file** is faster than the load of a small file. Reading and cleaning it takes more than twice as
  long as the COPY. It is staged and compared with the table before its rows are inserted, so every row is written twice, and its
  ledger entry is written when the load begins and when it ends. Loading several files in one transaction, or copying
  into the table at once, would be faster; a file would no longer be one transaction, or there would be one more way to
  load it.
- **Hand-written SQL** is a little faster, for one month more than for all of them, because the refresh's locks, queue
  and log weigh more there.
- **Three million jobs at once** take more than twice as long for each row as 100,000, in CPU time almost as much. We have
  not looked for the reason yet; a million do not.
- **One changed month** takes longer among ten years than among one, also by hand: the payments of its 8,000 jobs are
  looked up one by one, in an index ten times as large, most of which is in no cache of the processor.
- **A bare INSERT** is faster than the payment RPC, whose guards are the point of it.
- **An empty run of Dagster** is most of what a refresh with nothing new takes. Who needs it faster has to leave Dagster
  out, as `load_source` and `refresh` do.

dlt is no dependency and so not in the tables: when bulk loads were designed (November 2026), its merge of the same rows
took 52.5 s beside 39.6 to 42.0 s for our load as it was then, measured once.
"""

HEADERS = ["what", "ours", "CPU", "compared with", "theirs", "CPU", "ratio", "limit", "", "note"]
NUMBERS = {"ours", "theirs", "CPU"}


def cells(row: BenchRow) -> list[str]:
    """Returns the row's cells as text, in the order of `HEADERS`."""
    ratio = "–"
    if row.ratio is not None:
        ratio = f"{row.ratio:.2f}" + (f" (CPU {row.cpu_ratio:.2f})" if row.cpu_ratio is not None else "")
    sign = "≥" if row.higher_is_better else "≤"
    limit = "–"
    if row.limit is not None:
        limit = f"{sign} {row.limit:g}" + ("" if row.ratio is not None else f" {row.unit}")
    return [
        row.what,
        f"{_number(row.value)} {row.unit}",
        _cpu(row.cost, row.unit),
        row.baseline_name or "–",
        "–" if row.baseline is None else f"{_number(row.baseline)} {row.unit}",
        _cpu(row.baseline_cost, row.unit),
        ratio,
        limit,
        {None: "", True: "kept", False: "MISSED"}[row.kept],
        row.note,
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def _cpu(cost: Cost | None, unit: str) -> str:
    """Returns the server's and the client's CPU time."""
    if cost is None:
        return "–"
    factor = 1000 if unit == "ms" else 1
    return f"{_number(cost.server * factor)} + {_number(cost.client * factor)}"


def print_table(rows: list[BenchRow], console: Console) -> None:
    """Prints all lines, with a rule between sections and missed limits in red."""
    table = Table(*HEADERS, title="benchmarks (2 cores)")
    section = ""
    for row in rows:
        if section and row.section != section:
            table.add_section()
        section = row.section
        table.add_row(*cells(row), style="red" if row.kept is False else "")
    console.print(table)


def write_page(run: Run, page: Path) -> None:
    """Writes the same lines as a page of the documentation, section by section, with what they are compared with."""
    lines = [INTRODUCTION, _taken(run)]
    for section in dict.fromkeys(row.section for row in run.rows):
        table = [HEADERS, *(cells(row) for row in run.rows if row.section == section)]
        # a column that no line of the section uses is left out
        used = [n for n in range(len(HEADERS)) if any(line[n] not in ("", "–") for line in table[1:])]
        lines += [f"\n## {section}\n\n{EXPLANATIONS[section]}\n"]
        rendered = [f"| {' | '.join(line[n] for n in used)} |" for line in table]
        rule = "|".join("---:" if HEADERS[n] in NUMBERS else "---" for n in used)
        lines += [rendered[0], f"|{rule}|", *rendered[1:]]
    lines.append(BEHIND)
    page.write_text("\n".join(lines), encoding="utf-8")


def _taken(run: Run) -> str:
    if run.scale != 1:
        return f"**A quick run at {run.scale:g} of the full size: its ratios don't represent the project.**"
    return (
        f"This run took {run.seconds / 60:.0f} minutes, and {run.disk / 1e9:.0f} GB of disk space at most"
        " (`python -m bench --folder` chooses where)."
    )
