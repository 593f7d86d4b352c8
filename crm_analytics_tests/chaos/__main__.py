"""The command `python -m crm_analytics_tests.chaos [--kills 200] [--seed N] [--round N]`: kills, compares, writes docs/chaos.md."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom

import click

from crm_analytics.core.settings import PROJECT_DIR
from crm_analytics.core.wording import counted
from crm_analytics_tests.chaos.lab import WAYS, Hit, Lab
from crm_analytics_tests.chaos.rounds import VICTIMS, plan, run

PAGE = PROJECT_DIR / "docs" / "chaos.md"
FULL = 200
#: The direct ways take a second to start, the command several, so it has a quarter of the rounds.
ORDER = (WAYS[0], WAYS[1], WAYS[0], WAYS[1], WAYS[0], WAYS[1], WAYS[2], WAYS[2])
MET = ("load", "refresh", "neither")
WAY_TEXTS = {
    "together": "processes that refresh all months together",
    "stepwise": "processes that refresh each stale month after each source",
}

INTRODUCTION = """# Kills at random moments

`make chaos` writes this page. It loads a landing folder of {files} files in two stages, so that older exports and
corrections come late, and refreshes the metrics: through `crm-analytics refresh`, and through the same loads and
refreshes in a process without Dagster, which starts faster. At a random moment it kills the working process, its database
sessions, the PostgreSQL server, or all of them at once; then it starts the work again, and kills again. After the last
kill of a stage it lets the work end.

Then every table in `raw` and `analytics` must equal that of undisturbed work, including the ledger with its counts, and
the quarantine. Only clocks, run ids, counted ids, `analytics.refresh_log` and the revisions, which depend on how often
months were refreshed, are left out. No month may be stale, and no file may be loaded once more.
"""


@click.command()
@click.option(
    "--kills", default=FULL, show_default=True, help="Stop after so many kills that met running work."
)
@click.option("--seed", type=int, help="The seed of all rounds. [default: a new one]")
@click.option("--round", "only", type=int, help="Repeat this round only.")
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Page to write. [default: {PAGE.name}, after {FULL} kills]",
)
def main(kills: int, seed: int | None, only: int | None, page: Path | None) -> None:
    """Kill loads and refreshes at random moments; exit with code 1 at the first difference from undisturbed work."""
    # so that the server and the folder are removed, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    seed = SystemRandom().randrange(1_000_000) if seed is None else seed
    started = time.monotonic()
    click.echo(f"seed {seed}")
    lab = Lab(
        Path(tempfile.mkdtemp(prefix="crm_analytics_chaos_")),
        int(os.environ.get("PG", "18")),
        months=6,
        jobs=20_000,
    )
    hits: list[Hit] = []
    number = 0 if only is None else only
    try:
        while sum(hit.counts for hit in hits) < kills:
            planned = plan(seed, number, ORDER)
            if planned.way not in lab.measured:
                lab.measure(planned.way)
                spans = ", ".join(
                    f"{lab.spans[planned.way, stage, False]:.1f} s" for stage in range(len(lab.stages))
                )
                click.echo(f"undisturbed: {planned.way}: {spans}")
            for hit in run(lab, planned):
                hits.append(hit)
                click.echo(
                    f"round {number}, {hit.way}: killed {hit.victim}, met {hit.met}{', writing' * hit.writing}"
                )
            click.echo(f"round {number}: equal; {sum(hit.counts for hit in hits)} kills so far")
            if only is not None:
                break
            number += 1
    except BaseException:
        click.echo(
            f"round {number} failed; again: python -m crm_analytics_tests.chaos --seed {seed} --round {number}"
        )
        raise
    finally:
        files = len([path for path in lab.stages[-1].rglob("*.*") if path.is_file()])
        lab.close()
    text = report(hits, seed, number, lab, time.monotonic() - started, files)
    click.echo(text)
    if page is None and kills >= FULL:
        page = PAGE
    if page is not None:
        page.write_text(text, encoding="utf-8")
        click.echo(f"wrote {page}")


def report(hits: list[Hit], seed: int, rounds: int, lab: Lab, seconds: float, files: int) -> str:
    """Returns the page."""
    met = Counter((hit.victim, hit.met) for hit in hits)
    ways = Counter(hit.way for hit in hits if hit.counts)
    lines = [
        INTRODUCTION.format(files=files),
        f"{datetime.now(UTC):%B %d, %Y}, PostgreSQL {lab.version}, seed {seed}: {counted(sum(ways.values()), 'kill')} in {counted(rounds, 'round')}"
        f" and {seconds / 60:.0f} minutes. **Every time the tables were equal.**",
        "",
        *(f"- {count} kills of {WAY_TEXTS.get(way, f'`{way}`')}" for way, count in ways.items()),
        f"- {sum(hit.writing for hit in hits)} of all met a transaction that had written something",
        "",
        f"| killed, and what it met | {' | '.join(MET)} | all |",
        f"|---|{'---:|' * (len(MET) + 1)}",
    ]
    for victim in VICTIMS:
        counts = [met[victim, name] for name in MET]
        lines.append(f"| {victim} | {' | '.join(map(str, counts))} | {sum(counts)} |")
    totals = [sum(met[victim, name] for victim in VICTIMS) for name in MET]
    lines.append(f"| all | {' | '.join(map(str, totals))} | {sum(totals)} |")
    missed = sum(not hit.counts for hit in hits)
    lines += [
        "",
        "- *neither*: the process was starting, was between two locks, or kept its Dagster run's log.",
        "- *sessions*: `pg_terminate_backend` for all of the process's. *server*: SIGKILL to the postmaster alone. *server at"
        " once*: PostgreSQL's immediate shutdown. *everything*: SIGKILL to the process and to all of the server's.",
        f"- Kills that came after the work had ended, and are not counted: {missed}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
