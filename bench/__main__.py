"""`python -m bench [--scale 0.05] [SECTION...]`: measure, print the table, write docs/benchmarks.md, judge the limits."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from rich.console import Console

from bench.environment import Ground
from bench.report import print_table, write_page
from bench.table import BenchRow
from crm_analytics.core.embedded_postgres import EmbeddedPostgres
from crm_analytics.core.settings import PROJECT_DIR, settings

PAGE = PROJECT_DIR / "docs" / "benchmarks.md"
SECTIONS = ("ingest", "metrics", "comparators", "dagster", "crm_rpc", "grafana")


@click.command()
@click.argument("sections", nargs=-1, type=click.Choice(SECTIONS))
@click.option(
    "--scale", type=click.FloatRange(0.001, 1), default=1.0, show_default=True, help="Share of the full size."
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to work (1.5 GB at full size); a temporary folder by default. Removed at the end.",
)
@click.option(
    "--page",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"Page to write; {PAGE.name} after a full run.",
)
def main(sections: tuple[str, ...], scale: float, folder: Path | None, page: Path | None) -> None:
    """Measure SECTIONS (all by default). Exit code 1 if a limit is missed."""
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server and the folder go, too
    work = Path(tempfile.mkdtemp(prefix="crm_analytics_bench_", dir=folder))
    server = EmbeddedPostgres(work / "server", settings().embedded_postgres_version).start()
    rows: list[BenchRow] = []
    try:
        ground = Ground(server, work, scale, lambda text: console.print(f"[dim]{text} …[/]"))
        for name in sections or SECTIONS:
            for row in _section(name, ground):
                rows.append(row)
                verdict = {None: "", True: " kept", False: " [red]MISSED[/]"}[row.kept]
                ratio = "" if row.ratio is None else f" (ratio {row.ratio:.2f})"
                console.print(
                    f"{row.what}: {row.value:.2f} {row.unit}{ratio}{verdict} {row.note}", highlight=False
                )
    finally:
        server.stop()
        server.release()
        shutil.rmtree(work, ignore_errors=True)
    print_table(rows, console)
    if page is None and scale == 1 and not sections:
        page = PAGE
    if page is not None:
        write_page(rows, scale, page)
        console.print(f"written: {page}")
    sys.exit(1 if any(row.kept is False for row in rows) else 0)


def _section(name: str, ground: Ground) -> Iterable[BenchRow]:
    if importlib.util.find_spec(f"bench.{name}") is None and name != "dagster":
        ground.say(f"no section {name} in this release")
        return []
    if name == "crm_rpc":
        rpc = importlib.import_module("bench.crm_rpc")
        calls = max(160, round(100_000 * ground.scale))
        measured: list[BenchRow] = rpc.crm_rpc_rows(ground.server, calls)
        return measured
    module = importlib.import_module("bench.dagster_run" if name == "dagster" else f"bench.{name}")
    rows: Callable[..., Iterable[BenchRow]] = module.rows
    return rows() if name == "grafana" else rows(ground)


if __name__ == "__main__":
    main()
