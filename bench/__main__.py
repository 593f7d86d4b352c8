"""The command `python -m bench [--scale 0.05] [SECTION...]`: measures, prints the table, and judges the limits."""

from __future__ import annotations

import importlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from bench.environment import Environment
from bench.report import Run, print_table, write_page
from bench.table import BenchRow
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR, settings

PAGE = PROJECT_DIR / "docs" / "benchmarks.md"
SECTIONS = (
    "ingest",
    "growth",
    "small_files",
    "metrics",
    "comparators",
    "commands",
    "dagster_run",
    "crm_rpc",
    "grafana",
)
#: What no full run measures.
ON_REQUEST = ("partitions",)


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice((*SECTIONS, *ON_REQUEST)))
@click.option(
    "--scale", type=click.FloatRange(0.001, 1), default=1.0, show_default=True, help="Share of the full size."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Parent of the working folder, which is removed at the end; {PAGE.name} says how big it gets."
    " [default: the temporary folder]",
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Page to write. [default: {PAGE.name}, after a full run only]",
)
def main(sections: tuple[str, ...], scale: float, folder: Path | None, page: Path | None) -> None:
    """Measure SECTIONS (all but partitions by default). Exits with code 1 if a limit is missed."""
    # a file has no width of its own
    console = Console() if sys.stdout.isatty() else Console(width=250)
    # so that the server and the folder are removed, too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    work = Path(tempfile.mkdtemp(prefix="crm_analytics_bench_", dir=folder))
    server = EmbeddedPostgres(work / "server", settings().embedded_postgres_version).start()
    try:
        environment = Environment(server, work, scale, lambda text: console.print(f"[dim]{text} …[/]"))
        run = measure(
            environment, sections or SECTIONS, lambda row: console.print(_told(row), highlight=False)
        )
    finally:
        server.stop()
        server.release()
        shutil.rmtree(work, ignore_errors=True)
    print_table(run.rows, console)
    if page is None and scale == 1 and not sections:
        page = PAGE
    if page is not None:
        write_page(run, page)
        console.print(f"wrote {page}")
    sys.exit(1 if any(row.kept is False for row in run.rows) else 0)


def measure(environment: Environment, sections: Sequence[str], show: Callable[[BenchRow], None]) -> Run:
    """Measures the sections, and what the whole takes in time and disk space; shows each line when it is known."""
    start = time.monotonic()
    rows: list[BenchRow] = []
    for name in sections:
        section: Iterator[BenchRow] = importlib.import_module(f"bench.{name}").rows(environment)
        for row in section:
            rows.append(row)
            show(row)
    return Run(rows, environment.scale, time.monotonic() - start, environment.disk)


def _told(row: BenchRow) -> str:
    verdict = {None: "", True: " kept", False: " [red]MISSED[/]"}[row.kept]
    ratio = "" if row.ratio is None else f" (ratio {row.ratio:.2f})"
    return f"{row.what}: {row.value:.2f} {row.unit}{ratio}{verdict} {row.note}"


if __name__ == "__main__":
    main()
